"""Components: parts of a configuration that the user picks by name.

A component is a dataclass with a ``build`` method; a registry maps names to such dataclasses. A field made with
:func:`component` tells the command line to offer the registry's names at that place: ``--model.name patchtst`` or,
for short, ``--model patchtst``; ``custom:package.module.Class`` picks a dataclass from outside this repository.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graftwork.errors import ConfigError
from graftwork.names import unknown

CUSTOM = "custom:"


def import_dotted(path: str, where: str = "") -> Any:
    """Import ``package.module.Name`` (or ``package.module:Name``) and return the object.

    Raises:
        ConfigError: The module or the name in it does not exist.
    """
    module_name, _, attribute = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise ConfigError(f"'{path}' is no dotted path such as my_pkg.MyConfig", where=where)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"cannot import '{module_name}': {error}", where=where) from error
    if not hasattr(module, attribute):
        raise unknown(f"name in {module_name}", attribute, [n for n in vars(module) if not n.startswith("_")], where)
    return getattr(module, attribute)


class Registry:
    """Names of one kind of component and the dataclass behind each.

    Args:
        kind: What the names stand for, as errors and help call it: ``"model"``.
        entries: Name to dataclass, or to the dotted path ``"package.module:Class"`` of one.
        default: The name used when the user gives none; the first entry if omitted.
    """

    def __init__(self, kind: str, entries: Mapping[str, type | str], default: str | None = None) -> None:
        self.kind = kind
        self.entries = dict(entries)
        self.default = default if default is not None else next(iter(self.entries))

    def names(self) -> list[str]:
        """All registered names, in registration order."""
        return list(self.entries)

    def get(self, name: str, where: str = "") -> type:
        """The dataclass behind ``name``.

        Raises:
            ConfigError: No such name (nearest ones are given), or a ``custom:`` path that holds no buildable dataclass.
        """
        if name.startswith(CUSTOM):
            return self._custom(name, where)
        if name not in self.entries:
            raise unknown(self.kind, name, self.entries, where)
        entry = self.entries[name]
        return import_dotted(entry) if isinstance(entry, str) else entry

    def name_of(self, config: object) -> str:
        """The name under which the class of ``config`` is registered, or its ``custom:`` path."""
        for name in self.entries:
            if self.get(name) is type(config):
                return name
        return f"{CUSTOM}{type(config).__module__}.{type(config).__qualname__}"

    def _custom(self, name: str, where: str) -> type:
        here = str(Path.cwd())
        if here not in sys.path:  # a user's own file beside the shell they type in
            sys.path.insert(0, here)
        cls = import_dotted(name.removeprefix(CUSTOM), where)
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and callable(getattr(cls, "build", None))):
            raise ConfigError(f"'{name}' is no dataclass with a build() method", where=where)
        return cls


def component(registry: Registry, default: str | Callable[[], Any] | None = None) -> Any:
    """A dataclass field whose value is a component of ``registry``.

    Args:
        registry: Where the names come from.
        default: Name of the default component, or a factory of a configured one; the registry's default if omitted.
    """
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={"registry": registry})
    name = default or registry.default
    return dataclasses.field(default_factory=lambda: registry.get(name)(), metadata={"registry": registry})
