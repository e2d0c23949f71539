"""Weight files, read without ever running code from them.

Two formats are understood: safetensors, and PyTorch files loaded with ``weights_only=True``. A file that is neither,
that is cut short, or that would need code to be unpickled is refused with a sentence that says which of these it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from graftwork.errors import WeightsError

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params", "net")
"""Keys under which training programs keep the state dict inside a checkpoint, in order of preference."""

_CODE = re.compile(r"(?:GLOBAL |[Uu]nsupported (?:global|class): ?(?:GLOBAL )?)([\w.]+)")
_MEND_CORRUPT = "Fetch or copy it again, and compare its size and sha256 with the source."
_MEND_CODE = "Ask for, or write, the plain state dict: torch.save(model.state_dict(), ...) or a safetensors file."


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
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds here; each is either code or damage
        text = str(error)
        code = _CODE.search(text)
        if code and code.group(1):
            what = f"refused: the file holds the Python object {code.group(1)}, and loading it could run code from it"
            raise WeightsError(what, where=str(file), mend=_MEND_CODE) from error
        if "TorchScript" in text:
            what = "refused: the file is a TorchScript program, which holds code"
            raise WeightsError(what, where=str(file), mend=_MEND_CODE) from error
        if "weights only load failed" in text.lower() and _is_pickle(file):
            what = "refused: the file is a Python pickle of more than tensors, and loading it could run code"
            raise WeightsError(what, where=str(file), mend=_MEND_CODE) from error
        first_line = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        what = f"is no complete weights file ({first_line[:160]})"
        raise WeightsError(what, where=str(file), mend=_MEND_CORRUPT) from error


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
