"""From raw layers to one checked configuration; every problem is found before any is reported."""

from __future__ import annotations

import io
import typing
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any

import yaml

from apps.core.cli.layers import flatten, stack, unflatten
from apps.core.cli.schema import Leaf, Tree, build, check_default, choices, leaves, problems, to_plain
from graftwork.errors import all_problems
from graftwork.names import nearest


def resolve(cls: type, files: Sequence[Mapping[str, Any]], overrides: Mapping[str, Any]) -> Any:
    """The checked configuration of ``cls``.

    Args:
        cls: Configuration dataclass of an app.
        files: Nested raw values, the later over the earlier.
        overrides: Raw values that win over every file, nested or dotted.

    Raises:
        ConfigError: One or several problems, each named with its key, what was found, and what would do.
    """
    default = check_default(cls)
    found: list[str] = []
    tree = stack(default, files, unflatten(overrides), found)
    options = {leaf.key: leaf for leaf in leaves(default, tree)}
    found += unknown_keys(tree, options)
    values, wrong = typed(tree, options)
    found += wrong
    config = build(default, unflatten(values))
    found += problems(config)
    if found:
        raise all_problems(found)
    return config


def complete(default: Any, tree: Mapping[str, Any]) -> Any:
    """The configuration of a tree that may still hold wrong values: those are left at their defaults."""
    options = {leaf.key: leaf for leaf in leaves(default, tree)}
    values, _ = typed(tree, options)
    return build(default, unflatten(values))


def config_from_plain(cls: type, plain: Mapping[str, Any]) -> Any:
    """The configuration of a nested dict of plain types, as a checkpoint or a run's ``config.yaml`` holds it."""
    return resolve(cls, [plain], {})


def to_yaml(config: Any) -> str:
    """The configuration as YAML that resolves to itself."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=100)


def unknown_keys(tree: Mapping[str, Any], options: Mapping[str, Leaf]) -> list[str]:
    """A sentence for each key that no option has, with the nearest ones."""
    found = []
    for key in flatten(tree):
        if key in options or any(_holds_mapping(options[o]) and key.startswith(f"{o}.") for o in options):
            continue
        found.append(_unknown_key(key, list(options)))
    return found


def _unknown_key(key: str, known: Sequence[str]) -> str:
    section, _, last = key.rpartition(".")
    siblings = [o for o in known if o.rpartition(".")[0] == section]
    close = [f"{section}.{n}" if section else n for n in nearest(last, [s.rpartition(".")[2] for s in siblings])]
    elsewhere = [o for o in known if o.rpartition(".")[2] == last]
    close = list(dict.fromkeys([*elsewhere[:2], *close]))[:3] or nearest(key, known)
    if close:
        return f"unknown option '{key}'; did you mean {' or '.join(close)}?"
    mend = f"'{section}' has {', '.join(s.rpartition('.')[2] for s in siblings)}" if siblings else "see --help"
    return f"unknown option '{key}'; {mend}"


def _holds_mapping(leaf: Leaf) -> bool:
    return typing.get_origin(leaf.type) is dict or leaf.type is dict


def typed(tree: Mapping[str, Any], options: Mapping[str, Leaf]) -> tuple[Tree, list[str]]:
    """Values converted to their types, and a sentence for each that does not fit."""
    from jsonargparse import ArgumentParser

    values: Tree = {}
    wrong: list[str] = []
    for key, leaf in options.items():
        raw = _lookup(tree, key)
        if raw is _ABSENT:
            continue
        if leaf.registry is not None:
            values[key] = str(raw)
            continue
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=leaf.type, default=None)
        try:
            with redirect_stderr(io.StringIO()):
                values[key] = parser.parse_object({"value": _prepared(raw, leaf.type)}).value
        except Exception:  # jsonargparse raises several kinds; each means that the value does not fit
            wrong.append(_wrong_value(leaf, raw))
    return values, wrong


_ABSENT = object()


def _lookup(tree: Mapping[str, Any], key: str) -> Any:
    place: Any = tree
    for part in key.split("."):
        if not isinstance(place, Mapping) or part not in place:
            return _ABSENT
        place = place[part]
    return place


def _prepared(raw: Any, annotation: Any) -> Any:
    """Small courtesies: ``0.1,0.9`` for a list (one number stays one where it may), a number where text is wanted."""
    origin = typing.get_origin(annotation)
    kinds = [origin, *(typing.get_origin(a) for a in typing.get_args(annotation))]
    words = str in typing.get_args(annotation) and origin not in (tuple, list)  # text that may also be a list
    listed = (tuple in kinds or list in kinds) and not words
    single = origin not in (tuple, list) and {int, float} & set(typing.get_args(annotation))
    if isinstance(raw, str) and listed and not raw.strip().startswith(("[", "(", "null")):
        return raw if single and "," not in raw else f"[{raw}]"
    takes_text = annotation is str or str in typing.get_args(annotation)
    if takes_text and isinstance(raw, int | float) and not isinstance(raw, bool):
        numeric = {int, float} & set(typing.get_args(annotation))
        return raw if numeric else str(raw)
    if annotation is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    return raw


def _wrong_value(leaf: Leaf, raw: Any) -> str:
    allowed = choices(leaf.type)
    if allowed:
        close = nearest(str(raw), [str(a) for a in allowed])
        names = ", ".join(str(a) or "''" for a in allowed)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {names}"
        return f"{leaf.key}={raw!r} is no known value; {hint}"
    return f"{leaf.key}={raw!r} must be {_kind(leaf.type)}{_example(leaf)}"


_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "'key: value' pairs",
    type(None): "null",
}
_SEVERAL: dict[Any, str] = {int: "whole numbers", float: "numbers", bool: "values true or false", str: "words"}
_COUNTS = {2: "two", 3: "three", 4: "four"}


def _kind(annotation: Any) -> str:
    """What a value of a type looks like, in words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (tuple, list):
        fixed = origin is tuple and Ellipsis not in parts
        items = _SEVERAL.get(parts[0], "values") if parts else "values"
        return f"{_COUNTS.get(len(parts), len(parts))} {items}" if fixed else f"a list of {items}"
    if origin is dict:
        return _KINDS[dict]
    if origin is typing.Literal:
        return " or ".join(str(part) for part in parts)
    if parts:
        return " or ".join(_kind(part) for part in parts)
    return _KINDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _example(leaf: Leaf) -> str:
    """An example for a list: its default, where that has anything in it."""
    if isinstance(leaf.default, tuple | list) and leaf.default:
        return f", for example --{leaf.key} {','.join(str(item) for item in leaf.default)}"
    return ""
