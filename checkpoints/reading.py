"""Weight files, read without ever running code from them.

Two formats are understood: safetensors, and PyTorch files loaded with ``weights_only=True``. A file that is neither,
that is cut short, or that would need code to be unpickled is refused with a sentence that says which of these it is.

Checkpoints of training programs keep more than weights: histories of losses, numbers of numpy, options. Where a file
names such a class of :data:`TRAINING_STATE`, an :class:`Inert` object takes its place: the class is neither imported
nor called, and what was to become of it is forgotten. Any other name is refused.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from graftwork.errors import WeightsError

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params", "net")
"""Keys under which training programs keep the state dict inside a checkpoint, in order of preference."""

TRAINING_STATE = (
    "mmengine.",
    "mmcv.",
    "mmseg.",
    "mmdet.",
    "numpy.",
    "fvcore.common.",
    "detectron2.",
    "omegaconf.",
    "yacs.config.",
    "addict.",
    "argparse.Namespace",
    "datetime.",
    "pathlib.",
    "builtins.getattr",
    "copyreg._reconstructor",
    "builtins.object",
)
"""Names, or beginnings of names, of classes and functions that training state refers to, which weights need not."""

LEGACY_PICKLES = 4
"""Pickles at the beginning of a file of torch before 1.6: a number, a version, facts of the system, the content."""

PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules that pickles of this kind call by an older name."""

_CODE = re.compile(r"(?:GLOBAL |[Uu]nsupported (?:global|class): ?(?:GLOBAL )?)([\w.]+)")
_MEND_CORRUPT = "Fetch or copy it again, and compare its size and sha256 with the source."
_MEND_CODE = "Ask for, or write, the plain state dict: torch.save(model.state_dict(), ...) or a safetensors file."


class Inert:
    """What stands for an object of training state: it takes anything, does nothing, and keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        """Whatever the object was to be made of is dropped."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Whatever the object was to hold is dropped."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a file, on the CPU.

    Args:
        path: A safetensors file or a file written by ``torch.save``; the kind is read from its content. A checkpoint
            that keeps its state dict under a key such as ``state_dict`` or ``model`` is unwrapped.

    Returns:
        Official key to tensor, in the order of the file.

    Raises:
        WeightsError: The file is missing, truncated, of another kind, holds no tensors, or holds Python objects
            whose loading would run code.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise WeightsError("no such weights file", where=str(path), mend="Check the path, or fetch the weights first.")
    if file.is_dir():
        raise WeightsError("is a folder, expected a weights file", where=str(path), mend="Name the file inside it.")
    try:
        with file.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise WeightsError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if not head:
        raise WeightsError("is an empty file", where=str(path), mend=_MEND_CORRUPT)
    if file.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(file)
    return _tensors_in(_read_torch(file), file)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file, device="cpu")
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(f"is no complete safetensors file ({error})", where=str(file), mend=_MEND_CORRUPT) from error
    if not tensors:
        raise WeightsError("holds no tensors", where=str(file))
    return tensors


def _read_torch(file: Path) -> object:
    try:
        return _load(file)
    except Exception as error:  # torch raises a dozen kinds here; each is either code or damage
        text = str(error)
        code = _CODE.search(text)
        if code and code.group(1):
            what = f"refused: the file holds the Python object {code.group(1)}, and loading it could run code from it"
            raise WeightsError(what, where=str(file), mend=_MEND_CODE) from error
        if "TorchScript" in text:
            what = "refused: the file is a TorchScript program, which holds code"
            raise WeightsError(what, where=str(file), mend=_MEND_CODE) from error
        if "weights only load failed" in text.lower() and (_is_pickle(file) or zipfile.is_zipfile(file)):
            what = "refused: the file is a Python pickle of more than tensors, and loading it could run code"
            raise WeightsError(what, where=str(file), mend=_MEND_CODE) from error
        first_line = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        what = f"is no complete weights file ({first_line[:160]})"
        raise WeightsError(what, where=str(file), mend=_MEND_CORRUPT) from error


def _load(file: Path) -> object:
    """What torch reads without running code, names of training state being inert."""
    inert = [(Inert, name) for name in _names_in(file) if name.startswith(TRAINING_STATE)]
    with torch.serialization.safe_globals(inert):  # type: ignore[arg-type]
        return torch.load(file, map_location="cpu", weights_only=True)


def _names_in(file: Path) -> set[str]:
    """Classes and functions that a file of torch names; read without following any of them."""
    with ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(file.open("rb"))
        pickles = LEGACY_PICKLES
        if zipfile.is_zipfile(stream):
            archive = stack.enter_context(zipfile.ZipFile(stream))
            inside = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if inside is None:
                return set()
            stream, pickles = stack.enter_context(archive.open(inside)), 1
        else:
            stream.seek(0)
        names = set()
        with suppress(ValueError):  # no such file, or cut short: torch will say so
            for _ in range(pickles):
                for code, argument, _place in pickletools.genops(stream):
                    if code.name == "GLOBAL":
                        module, _, name = str(argument).partition(" ")
                        names.add(f"{PYTHON_2.get(module, module)}.{name}")
    return names


def _is_pickle(file: Path) -> bool:
    """Whether the file begins like a Python pickle (protocol 2 and up) rather than like a page or a picture."""
    with file.open("rb") as stream:
        head = stream.read(2)
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _tensors_in(content: object, file: Path) -> dict[str, Tensor]:
    """The state dict inside what was loaded: itself, or the value of the first known container key."""
    if isinstance(content, Mapping):
        for key in CONTAINERS:
            if isinstance(content.get(key), Mapping) and _tensors(content[key]):
                return _tensors(content[key])
        if _tensors(content):
            return _tensors(content)
        found = f"keys {', '.join(map(str, list(content)[:8]))}" if content else "an empty dictionary"
    else:
        found = f"a {type(content).__name__}"
    raise WeightsError(f"holds no tensors under names, but {found}", where=str(file), mend=_MEND_CODE)


def _tensors(content: Mapping[object, object]) -> dict[str, Tensor]:
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
