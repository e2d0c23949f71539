"""Which formula serves a call of the attention core, and the record of what was chosen and why.

Precedence of a wish, first stated wins: the call's ``backend`` argument, ``with force(name)``, ``set_default(name)``
(the ``--attention`` flag), the environment variable ``GRAFTWORK_ATTENTION``. Torch is imported only to probe.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from graftwork.names import unknown

VARIABLE = "GRAFTWORK_ATTENTION"
BACKENDS = ("xformers", "sdpa", "math")
NAMES = ("auto", *BACKENDS)

_forced: ContextVar[str | None] = ContextVar("graftwork_attention", default=None)
_default: str | None = None


def _checked(name: str, where: str) -> str:
    if name not in NAMES:
        raise unknown("attention backend", name, NAMES, where=where)
    return name


@contextmanager
def force(name: str) -> Iterator[None]:
    """Use one backend for every attention call inside the ``with`` block; ``"auto"`` lifts an outer wish.

    Raises:
        ConfigError: Unknown name.
    """
    token = _forced.set(_checked(name, "force"))
    try:
        yield
    finally:
        _forced.reset(token)


def set_default(name: str | None) -> None:
    """Set the backend for the whole process, as ``--attention`` does; None or ``"auto"`` unsets it.

    Raises:
        ConfigError: Unknown name.
    """
    global _default
    _default = None if name is None or _checked(name, "--attention") == "auto" else name


def wish(backend: str = "auto") -> tuple[str, str]:
    """The backend wanted for a call, and who wants it.

    Args:
        backend: The call's own argument.

    Returns:
        A name of :data:`NAMES` and the place it comes from, ``""`` for plain ``"auto"``.

    Raises:
        ConfigError: Unknown name, at whichever place is asked first.
    """
    if _checked(backend, "backend") != "auto":
        return backend, "backend argument"
    forced = _forced.get()
    if forced is not None:
        return forced, "attention.force"
    if _default is not None:
        return _default, "--attention"
    name = os.environ.get(VARIABLE, "").strip() or "auto"
    return _checked(name, VARIABLE), VARIABLE if name != "auto" else ""


def resolve_form(operator: str, backend: str = "auto") -> Literal["fast", "math"]:
    """Choose between the two forms of an operator that has no foreign kernels.

    Args:
        operator: Name of the operator, for the record.
        backend: The call's own argument.

    Returns:
        ``"math"`` for the paper's literal formula if that is wanted, else ``"fast"``.

    Raises:
        ConfigError: Unknown backend name.
    """
    name, _ = wish(backend)
    return "math" if name == "math" else "fast"
