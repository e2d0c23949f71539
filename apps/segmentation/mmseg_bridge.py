"""The way to mmsegmentation, an optional package: opened on first use, on machines without mmcv's compiled operators.

Three surprises: mmsegmentation cannot be imported where mmcv has no compiled module, though most of it needs none, so
a module that refuses every call stands in for it; mmcv-lite 2.2 is refused by an assertion, 2.1 is right; transforms
and datasets are looked up in the registries of whichever project is the default scope.

Versions that were seen to work together: mmsegmentation 1.2.2, mmcv-lite 2.1.0, mmengine 0.10.7.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, NoReturn

from graftwork.errors import ConfigError, DataError, MissingPackageError, UserError, missing_package

EXTRA = "mmseg"
SCOPE = "mmseg"
COMPILED = "mmcv._ext"

Kind = Literal["MODELS", "DATASETS", "TRANSFORMS", "METRICS"]
"""Registries of mmsegmentation."""


class AbsentOperators(ModuleType):
    """Stands in for mmcv's compiled module: everything can be looked up in it and nothing can be called."""

    def __init__(self) -> None:
        super().__init__(COMPILED, "Compiled operators, which mmcv-lite does not have.")
        # mmengine asks the import system whether there are operators; without a loader the answer is no
        self.__spec__ = ModuleSpec(COMPILED, loader=None)

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(f"module {COMPILED} has no attribute {name}")

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise MissingPackageError(
                f"{name} is a compiled operator of mmcv, which mmcv-lite does not have",
                mend="Choose a part of mmsegmentation without it, or install the full mmcv",
            )

        return refuse


def open_mmseg(needed_for: str) -> None:
    """Make ``import mmseg`` work, with its models, datasets and metrics registered.

    Where no project of the mmengine family has set a default scope yet, it becomes mmsegmentation's.

    Args:
        needed_for: What asks for it, for the message.

    Raises:
        MissingPackageError: mmsegmentation or a package it needs is not installed, cannot be imported, or has a
            version it refuses.
    """
    if find_spec("mmseg") is None:
        raise missing_package("mmsegmentation", EXTRA, needed_for)
    try:
        _opened()
    except ModuleNotFoundError as error:
        raise missing_package((error.name or "mmcv").partition(".")[0], EXTRA, needed_for) from error
    except UserError:
        raise
    except ImportError as error:
        raise MissingPackageError(
            f"{needed_for}: mmsegmentation cannot be imported: {error}",
            mend="Where libGL is missing, install opencv-python-headless in place of opencv-python",
        ) from error
    except AssertionError as error:
        raise MissingPackageError(
            f"{needed_for}: mmsegmentation refuses the packages beside it: {error}",
            mend=f"Install those that fit with: pip install 'graftwork[{EXTRA}]'",
        ) from error


@cache
def _opened() -> None:
    if find_spec("mmcv") is not None and COMPILED not in sys.modules and find_spec(COMPILED) is None:
        sys.modules[COMPILED] = AbsentOperators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages about each other
        for part in ("models", "datasets", "evaluation"):
            importlib.import_module(f"mmseg.{part}")
    from mmengine.registry import DefaultScope

    if DefaultScope.get_current_instance() is None:
        DefaultScope.get_instance(SCOPE, scope_name=SCOPE)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, mmengine's logger passes warnings only; it tells of every single parameter otherwise."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


def registry(kind: Kind, needed_for: str) -> Any:
    """One of mmsegmentation's registries.

    Raises:
        MissingPackageError: See :func:`open_mmseg`.
    """
    open_mmseg(needed_for)
    return getattr(importlib.import_module("mmseg.registry"), kind)


def build(kind: Kind, config: Mapping[str, Any], where: str = "") -> Any:
    """A part of mmsegmentation from its configuration, whatever the default scope is.

    Args:
        kind: The registry that ``type`` stands in.
        config: As its configuration files have it: ``{"type": "UPerHead", ...}``; nested parts may be plain dicts.
        where: Key for the error.

    Raises:
        MissingPackageError: See :func:`open_mmseg`.
        ConfigError: There is no such type, or it refuses its arguments.
        DataError: Files of a dataset are missing.
    """
    name = f"mmsegmentation's {config.get('type')}"
    found = registry(kind, name)
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope(SCOPE), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of its parts about each other, and about outputs not meant here
        try:
            return found.build(ConfigDict(config))
        except UserError:
            raise
        except OSError as error:
            raise DataError(f"{name}: {error}", where) from error
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            said = str(error.args[0]) if error.args else type(error).__name__
            if "at least one array" in said:  # what a dataset says when it joins its list of files
                raise DataError(f"{name} found no images", where, "Check data_root, data_prefix, img_suffix") from error
            raise ConfigError(f"{name} cannot be built: {said}", where) from error
