"""Golden cases on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from graftwork.errors import DataError

EVALUATION_SET = "expected.json"
"""A folder that holds this file is one case."""


@dataclass
class Case:
    """One golden case: what the json says and the tensors beside it.

    Args:
        path: The json file.
        meta: Its content.
        stated: Expected values that an adapter took from the json, compared like ``output.*`` tensors.
    """

    path: Path
    meta: dict[str, Any]
    stated: dict[str, Tensor] = field(default_factory=dict)

    @property
    def area(self) -> str:
        return str(self.meta.get("area", ""))

    @property
    def system(self) -> str:
        return str(self.meta.get("system", ""))

    @property
    def part(self) -> str:
        return str(self.meta.get("part", ""))

    @property
    def name(self) -> str:
        return str(self.meta.get("case", self.path.stem))

    @property
    def config(self) -> dict[str, Any]:
        """The official hyper-parameters, with those of ``extra`` on top."""
        for key in ("config", "constructor", "ctor"):
            if isinstance(self.meta.get(key), dict):
                return {**self.meta[key], **(self.meta.get("extra") or {})}
        return {}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        file = self.path.with_suffix(".safetensors")
        return dict(load_file(file)) if file.exists() else {}

    def _starting(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The official state dict."""
        return self._starting("weights.")

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return self._starting("input.")

    @property
    def expected(self) -> dict[str, Tensor]:
        """Every number our system must reproduce."""
        return {**self._starting("output."), **self.stated}

    def state(self, name: str, value: Tensor) -> None:
        """Expect a value that stands in the json rather than among the tensors."""
        self.stated[name] = value

    @cached_property
    def digest(self) -> str:
        """sha256 over the json and the tensors, or over every file of an evaluation set."""
        files = [self.path, self.path.with_suffix(".safetensors")]
        if self.path.name == EVALUATION_SET:
            files = sorted(file for file in self.path.parent.rglob("*") if file.is_file())
        digest = hashlib.sha256()
        for file in files:
            if file.exists():
                digest.update(file.read_bytes())
        return digest.hexdigest()


def read_case(path: Path) -> Case | None:
    """The case of a json file; None if the file is a table that belongs to no system.

    Raises:
        DataError: The file is no json.
    """
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"is no json ({error})", where=str(path)) from error
    return Case(path, meta) if isinstance(meta, dict) and "system" in meta else None


def find_cases(roots: Iterable[Path]) -> list[Case]:
    """Every case in files and folders, in order of path.

    Raises:
        DataError: A root does not exist.
    """
    found = []
    for root in roots:
        if not root.exists():
            raise DataError(
                "no such folder of golden cases", where=str(root), mend="Name one: python -m tests.parity DIR"
            )
        files = [root] if root.is_file() else sorted(root.rglob("*.json"))
        found += [case for file in files if (case := read_case(file)) is not None]
    return found
