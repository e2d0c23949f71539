"""Splits the words of a command line into verb options, configuration files and overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from graftwork.errors import ConfigError
from graftwork.names import nearest

VERB_OPTIONS = {
    "config": "Configuration file; may be given several times, the later over the earlier.",
    "resume": "'last' or the path of a checkpoint to go on from (fit).",
    "weights": "Trained weights: PATH, official:PATH or zoo:NAME.",
    "input": "File or folder to read (predict).",
    "output": "File or folder to write (predict, export).",
    "format": "Export format.",
    "json": "Also write the figures to this file (benchmark).",
}
FLAGS = {
    "debug": "Show the traceback of an error.",
    "print_config": "Print the resolved, checked configuration and stop.",
    "help": "Show this help and stop.",
}


@dataclasses.dataclass
class Words:
    """A command line, sorted.

    Args:
        configs: Values of ``--config``, in order.
        options: Verb options by name.
        flags: Flags that were given.
        overrides: Dotted configuration key to raw text.
    """

    configs: list[str] = dataclasses.field(default_factory=list)
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    flags: set[str] = dataclasses.field(default_factory=set)
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


def split(argv: Sequence[str]) -> Words:
    """Sort the words after the verb.

    Raises:
        ConfigError: A word that is no option, or an option without its value.
    """
    words = Words()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            words.flags.add("help")
            continue
        if not word.startswith("--"):
            raise ConfigError(f"'{word}' is no option; options start with --, for example --data.root {word}")
        key, equals, value = word[2:].partition("=")
        if key in FLAGS and not equals:
            words.flags.add(key)
            continue
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else ""
            if not value:
                raise ConfigError(f"--{key} needs a value", mend=_hint(key))
        _store(words, key, value)
    return words


def _store(words: Words, key: str, value: str) -> None:
    if key == "config":
        words.configs.append(value)
    elif key in VERB_OPTIONS:
        words.options[key] = value
    else:
        words.overrides[key] = value


def _hint(key: str) -> str:
    close = nearest(key, [*VERB_OPTIONS, *FLAGS])
    return f"Did you mean --{close[0]}?" if close and key not in VERB_OPTIONS else f"For example --{key} VALUE"
