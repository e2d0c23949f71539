"""Adapters: how to build, load and run our system for a golden case.

``<area>.py`` holds ``ADAPTERS``, from ``system`` or ``system/part`` to a function that takes a case and gives the
outputs by their golden names.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection, Mapping
from typing import Any

from graftwork.names import unknown


def of_area(area: str) -> Mapping[str, Callable[[Any], Any]] | None:
    """The adapters of an area; None if it has no module of them."""
    if not area.isidentifier() or importlib.util.find_spec(f"{__name__}.{area}") is None:
        return None
    found = getattr(importlib.import_module(f"{__name__}.{area}"), "ADAPTERS", None)
    return found if isinstance(found, Mapping) else None


def find(area: str, system: str, part: str = "") -> Callable[[Any], Any] | None:
    """The adapter for a part of a system, or for the system; None if there is none."""
    adapters = of_area(area) or {}
    return adapters.get(f"{system}/{part}") or adapters.get(system)


def refuse_unknown(official: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Fail at a hyper-parameter that an adapter would pass over.

    Raises:
        ConfigError: One that is not known; the message names the nearest that are.
    """
    for name in official:
        if name not in known:
            raise unknown("option", name, known, where)
