"""Walks a configuration dataclass into flat options: key, type, default and help of every leaf."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Literal, cast, get_type_hints

from graftwork.components import CUSTOM, Registry
from graftwork.errors import ConfigError

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One option of the command line.

    Args:
        key: Dotted key: ``"model.width"``.
        type: Annotation of the value.
        default: Value where the user gives none.
        help: One line for the reader.
        section: Dotted key of the section it stands in; empty at the top.
        registry: Where the value is the name of a component.
    """

    key: str
    type: Any
    default: Any
    help: str
    section: str
    registry: Registry | None = None


def registry_of(field: dataclasses.Field[Any]) -> Registry | None:
    """The registry of a component field, or None for any other field."""
    return field.metadata.get("registry")


def component_default(field_value: Any, registry: Registry, name: str | None, where: str = "") -> Any:
    """Instance that carries the defaults of component ``name``.

    Args:
        field_value: The field's own default, possibly configured by the app.
        registry: Where names come from.
        name: The wanted name; None takes the field's own.
        where: Key for the error.

    Raises:
        ConfigError: No such name.
    """
    if name is None or (field_value is not None and name == registry.name_of(field_value)):
        return field_value
    return registry.get(name, where)()


def named(value: Any) -> Tree:
    """A component's subtree from its short form: ``mixer: flow`` means ``mixer: {name: flow}``."""
    if isinstance(value, Mapping):
        return dict(value)
    return {"name": value}


@functools.cache
def field_help(cls: Hashable) -> Mapping[str, str]:
    """Docstring under each field of a dataclass, base classes included."""
    import docstring_parser

    texts: dict[str, str] = {}
    for base in reversed(inspect.getmro(cast(type, cls))):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            parsed = docstring_parser.parse_from_object(base)
        except (OSError, TypeError):  # a class without source, for example one made in a notebook
            continue
        texts |= {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}
    return texts


def leaves(default: Any, tree: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[Leaf]:
    """Every option below ``default`` for the component names chosen in ``tree``.

    Args:
        default: A dataclass instance that carries the defaults.
        tree: Raw values; only the ``name`` entries of components are read.
        prefix: Dotted key of ``default``.

    Raises:
        ConfigError: A component name that does not exist.
    """
    tree = tree or {}
    hints = get_type_hints(type(default))
    for field in dataclasses.fields(default):
        key = f"{prefix}.{field.name}" if prefix else field.name
        value, registry = getattr(default, field.name), registry_of(field)
        raw = tree.get(field.name)
        if registry is not None:
            chosen = component_default(value, registry, named(raw).get("name") if raw else None, f"{key}.name")
            yield _name_leaf(key, registry, chosen)
            yield from leaves(chosen, named(raw) if raw else None, key)
        elif dataclasses.is_dataclass(value):
            yield from leaves(value, raw if isinstance(raw, Mapping) else None, key)
        else:
            yield Leaf(key, hints[field.name], value, field_help(cast(Any, type(default))).get(field.name, ""), prefix)


def _name_leaf(key: str, registry: Registry, chosen: Any) -> Leaf:
    text = f"One of {', '.join(registry.names())}, or {CUSTOM}package.module.Class."
    return Leaf(f"{key}.name", str, registry.name_of(chosen), text, key, registry)


def section_title(default: Any, section: str, tree: Mapping[str, Any]) -> str:
    """First docstring line of the dataclass behind a section."""
    current, raw = default, tree
    for part in section.split(".") if section else ():
        field = next(f for f in dataclasses.fields(current) if f.name == part)
        registry = registry_of(field)
        raw = raw.get(part) or {}
        raw = named(raw) if registry is not None else raw
        value = getattr(current, part)
        current = value if registry is None else component_default(value, registry, raw.get("name"))
    doc = inspect.getdoc(type(current)) or ""
    return doc.splitlines()[0].rstrip(".") if doc else ""


def build(default: Any, tree: Mapping[str, Any]) -> Any:
    """The dataclass instance for a complete, checked tree."""
    values: Tree = {}
    for field in dataclasses.fields(default):
        if field.name not in tree:
            continue
        raw, value, registry = tree[field.name], getattr(default, field.name), registry_of(field)
        if registry is not None:
            subtree = named(raw)
            chosen = component_default(value, registry, subtree.pop("name", None), field.name)
            values[field.name] = build(chosen, subtree)
        elif dataclasses.is_dataclass(value):
            values[field.name] = build(value, raw)
        else:
            values[field.name] = raw
    return dataclasses.replace(default, **values)


def to_plain(config: Any) -> Tree:
    """Nested dict of plain types for YAML, json and checkpoints; components carry their ``name`` first."""
    tree: Tree = {}
    for field in dataclasses.fields(config):
        value, registry = getattr(config, field.name), registry_of(field)
        if registry is not None:
            tree[field.name] = {"name": registry.name_of(value), **to_plain(value)}
        elif dataclasses.is_dataclass(value):
            tree[field.name] = to_plain(value)
        else:
            tree[field.name] = _plain(value)
    return tree


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def problems(config: Any, prefix: str = "") -> Iterator[str]:
    """Everything that the ``problems`` methods of a configuration and its parts complain about."""
    check = getattr(config, "problems", None)
    if check is not None:
        names = {field.name for field in dataclasses.fields(config)}
        for text in check():
            starts_with_field = text.replace("=", " ").replace(".", " ").split(" ", 1)[0] in names
            yield f"{prefix}{'.' if starts_with_field else ': '}{text}" if prefix else text
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from problems(value, f"{prefix}.{field.name}" if prefix else field.name)


def choices(annotation: Any) -> tuple[Any, ...]:
    """Values of a Literal annotation; empty for any other."""
    return annotation.__args__ if getattr(annotation, "__origin__", None) is Literal else ()


def check_default(cls: type) -> Any:
    """A default instance of a configuration class.

    Raises:
        ConfigError: The class has a field without a default.
    """
    try:
        return cls()
    except TypeError as error:
        raise ConfigError(f"{cls.__name__} has a field without a default: {error}") from error
