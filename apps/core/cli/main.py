"""Entry of every app: ``python -m apps.<task> VERB [--config FILE] [--KEY VALUE ...]``."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.core.cli import help as pages
from apps.core.cli.layers import read_yaml, stack, unflatten
from apps.core.cli.places import explained, run_config
from apps.core.cli.resolve import resolve, to_yaml
from apps.core.cli.words import Words, split
from apps.core.run.processes import leave_group
from apps.core.task import VERBS, Task, VerbOptions
from graftwork.errors import ConfigError, UserError
from graftwork.names import unknown


def main(task: Task, argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        task: The app.
        argv: Words after the program's name; the process's own if omitted.

    Returns:
        Exit code: 0 done, 1 a check failed, 2 an error that the user can mend, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        return _run(task, words)
    except UserError as error:
        return _complain(str(error), debug)
    except KeyboardInterrupt:
        return _complain("interrupted", debug, code=130)
    except OSError as error:
        text = explained(error, words[0], split(words[1:]))
        if not text:
            raise
        return _complain(text, debug)


def _complain(text: str, debug: bool, code: int = 2) -> int:
    if debug:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.write(f"error: {text}\n")
    return code


def _run(task: Task, words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(pages.task_page(task) + "\n")
        return 0
    verb = words[0]
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    sorted_words = split(words[1:])
    files = [read_yaml(Path(path)) for path in sorted_words.configs]
    if "help" in sorted_words.flags:
        return _print_help(task, verb, files, sorted_words)
    stored = _stored_config(task, sorted_words)
    lowest = [layer for layer in (run_config(verb, sorted_words), stored) if layer]
    config = resolve(task.config, [*lowest, *files], sorted_words.overrides)
    text = to_yaml(config)
    if "print_config" in sorted_words.flags:
        sys.stdout.write(text)
        return 0
    options = VerbOptions(
        argv=tuple(words),
        checkpoint_config=stored,
        config_text=text,
        **sorted_words.options,
    )
    _talk()
    from apps.core.run.verbs import run_verb

    return int(run_verb(task, verb, config, options))


def _talk() -> None:
    """Let our own loggers speak on stderr, a message a line; those of libraries keep their levels."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    for name in ("apps", "backbones", "checkpoints", "datamodules", "graftwork"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


class _Lines(logging.Formatter):
    """Plain messages; warnings say so."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


def _print_help(task: Task, verb: str, files: list[dict[str, Any]], words: Words) -> int:
    default = task.config()
    found: list[str] = []
    tree = stack(default, files, unflatten(words.overrides), found)
    if found:
        raise ConfigError(found[0])
    pages.verb_parser(task, verb, default, tree).print_help()
    return 0


def _stored_config(task: Task, words: Words) -> dict[str, Any] | None:
    """Configuration kept in the weights, so that ``--weights best.ckpt`` alone knows its model."""
    spec = words.options.get("weights", "")
    if not spec or spec.startswith("official:"):
        return None
    from apps.core.checkpoints.read import stored_config

    return stored_config(spec, task.name)


def run(task: Task) -> None:
    """Run the verb named on the process's command line and exit with its code."""
    code = main(task)
    if code == 0:  # a run that failed may have calls under way that nobody answers
        leave_group()
    sys.stdout.flush()
    sys.exit(code)
