"""Layers of raw configuration: files in order, then their ``when`` clauses, then the user's overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from apps.core.cli.schema import Tree, component_default, named, registry_of, to_plain
from graftwork.errors import ConfigError
from graftwork.names import nearest


def read_yaml(path: Path) -> Tree:
    """Read one configuration file.

    Raises:
        ConfigError: The file is missing, unreadable, no YAML, or no mapping.
    """
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        close = nearest(str(path), siblings) or sorted(siblings)
        hint = f"Did you mean {' or '.join(close[:3])}?" if close else "Give the path of a YAML file."
        raise ConfigError("no such configuration file", where=str(path), mend=hint)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place is not None else ""
        raise ConfigError(f"is no valid YAML{line}", where=str(path)) from error
    if not isinstance(tree or {}, Mapping):
        raise ConfigError(f"must hold 'key: value' pairs, found {type(tree).__name__}", where=str(path))
    return unflatten(tree or {})


def unflatten(tree: Mapping[str, Any]) -> Tree:
    """Turn dotted keys into nested ones: ``{"a.b": 1}`` into ``{"a": {"b": 1}}``."""
    result: Tree = {}
    for key, value in tree.items():
        value = unflatten(value) if isinstance(value, Mapping) else value
        place, parts = result, str(key).split(".")
        for part in parts[:-1]:
            deeper = place.setdefault(part, {})
            if not isinstance(deeper, dict):  # 'model: flow' stood before 'model.width: 1'
                deeper = place[part] = {} if deeper is None else named(deeper)
            place = deeper
        last = parts[-1]
        if isinstance(value, dict) and isinstance(place.get(last), dict):
            place[last] = place[last] | value
        elif isinstance(place.get(last), dict) and last in place:
            place[last] = place[last] | ({} if value is None else named(value))
        else:
            place[last] = value
    return result


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """Turn nested keys into dotted ones; empty mappings vanish."""
    flat: Tree = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def merge(default: Any, below: Mapping[str, Any], layer: Mapping[str, Any], found: list[str], prefix: str = "") -> Tree:
    """Put ``layer`` on top of ``below``; a component whose name changes loses what lies below it.

    Args:
        default: Dataclass instance that says which keys are components.
        below: What is merged so far.
        layer: What comes on top.
        found: Takes a sentence for each component name that does not exist, and for each value that stands where a
            section belongs; what stands below it is left out. A section without content is none.
        prefix: Dotted key of ``default``.
    """
    fields = {field.name: field for field in dataclasses.fields(default)}
    merged = dict(below)
    for key, value in layer.items():
        field, where = fields.get(key), f"{prefix}{key}"
        current = getattr(default, key, None)
        component = field is not None and registry_of(field) is not None
        section = field is not None and not component and dataclasses.is_dataclass(current)
        if value is None and (component or section):
            continue
        if section and not isinstance(value, Mapping):
            text = f"{where}={value!r}: {where} must be a section of 'key: value' pairs; see --help for its keys"
            found += [text] if text not in found else []
        elif field is not None and component:
            merged[key] = _merge_component(field, current, merged.get(key), named(value), found, where)
        elif section:
            merged[key] = merge(current, merged.get(key) or {}, value, found, f"{where}.")
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = {**merged[key], **value}
        else:
            merged[key] = value
    return merged


def _merge_component(
    field: dataclasses.Field[Any], current: Any, below: Any, layer: Tree, found: list[str], where: str
) -> Tree:
    registry = registry_of(field)
    if registry is None:
        return layer
    layer = {key: value for key, value in layer.items() if key != "name" or value is not None}
    old = named(below) if below is not None else {}
    old_name = old.get("name", registry.name_of(current) if current is not None else registry.default)
    name = str(layer.get("name", old_name))
    if name != old_name:
        old = {}
    try:
        chosen = component_default(current, registry, name, f"{where}.name")
    except ConfigError as error:
        found += [str(error)] if str(error) not in found else []
        return named(below) if below is not None else {}
    return merge(chosen, old, {**layer, "name": name}, found, f"{where}.")


def stack(default: Any, files: Sequence[Mapping[str, Any]], overrides: Mapping[str, Any], found: list[str]) -> Tree:
    """All layers merged: files in order, their ``when`` clauses, overrides on top.

    A ``when`` clause sets values where the *final* configuration meets its conditions, so that one override such as
    ``--data.horizon 336`` brings the recipe that belongs to it; what the user sets by hand still wins. Wrong component
    names go into ``found``.
    """
    base: Tree = {}
    clauses: list[Mapping[str, Any]] = []
    for layer in files:
        clauses += _clauses(layer.get("when", ()))
        base = merge(default, base, {key: value for key, value in layer.items() if key != "when"}, found)
    whole = merge(default, base, overrides, found)
    values: Tree | None = None  # all of them so far; finding them is most of the work, so only where they changed
    for clause in clauses:
        values = _values(default, whole) if values is None else values
        if _holds(values, clause["if"]):  # set beside the components that the user chose, not those of the files
            base = merge(default, whole, unflatten(clause["set"]), found)
            whole, values = merge(default, base, overrides, found), None
    return whole


def _clauses(found: Any) -> Iterable[Mapping[str, Any]]:
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise ConfigError("'when' must be a list of {if: {key: value}, set: {key: value}}")
    for clause in found:
        if not isinstance(clause, Mapping) or set(clause) != {"if", "set"}:
            raise ConfigError(f"a 'when' clause needs the keys 'if' and 'set', found {clause!r}")
    return found


def _values(default: Any, tree: Mapping[str, Any]) -> Tree:
    from apps.core.cli.resolve import complete

    return flatten(to_plain(complete(default, tree)))


def _holds(values: Mapping[str, Any], conditions: Mapping[str, Any]) -> bool:
    return all(_same(values.get(key), wanted) for key, wanted in flatten(conditions).items())


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_same(value, one) for one in wanted)
    return bool(value == wanted) or str(value) == str(wanted)
