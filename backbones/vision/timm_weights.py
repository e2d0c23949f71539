"""Weights of timm's models: names of their files in ours, tables of other windows, and downloads.

Only safetensors files and PyTorch files without code are read, see :mod:`checkpoints.reading`.
"""

from __future__ import annotations

import math
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import model_entrypoint
from torch import Tensor

from backbones.vision.timm_models import Blueprint
from checkpoints.reading import read_weights
from graftwork.errors import WeightsError
from graftwork.names import nearest

PATIENCE_S = 10.0
"""How long to wait for an answer of the server before giving up."""

FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of a repository that may hold the weights, in order of preference."""


def fit_table(name: str, found: Tensor, wanted: Tensor, prefix_tokens: int = 1) -> Tensor | None:
    """A table of positions in another size.

    Args:
        name: Name of the table in timm.
        found: The table of the weights.
        wanted: One of the size wanted.
        prefix_tokens: Rows of a table of absolute positions that belong to no position, such as a class token's.

    Returns:
        The table, interpolated bicubically; None for what is no table, or of other heads or widths.
    """
    last = name.rpartition(".")[2]
    if last == "relative_position_bias_table" and found.dim() == wanted.dim() == 3:  # heads, rows, columns
        return _resized(found, wanted.shape[1:]) if found.shape[0] == wanted.shape[0] else None
    if last == "relative_position_bias_table" and found.dim() == wanted.dim() == 2:  # rows * columns, heads
        return _resized_rows(found, wanted) if found.shape[1] == wanted.shape[1] else None
    if last == "attention_biases" and found.dim() == wanted.dim() == 2:  # heads, rows * columns
        rows = _resized_rows(found.T, wanted.T, antialias=True) if found.shape[0] == wanted.shape[0] else None
        return None if rows is None else rows.T
    if last == "pos_embed" and found.dim() == wanted.dim() == 3 and found.shape[2] == wanted.shape[2]:
        return _resized_positions(found, wanted, prefix_tokens)
    return None


def _resized(table: Tensor, size: Any, antialias: bool = False) -> Tensor:
    """[heads, rows, columns] to other rows and columns."""
    resized = F.interpolate(table[None].float(), tuple(size), mode="bicubic", align_corners=False, antialias=antialias)
    return resized[0].to(table.dtype)


def _resized_rows(table: Tensor, wanted: Tensor, antialias: bool = False) -> Tensor | None:
    """[rows * columns, heads] to another number of them, both square."""
    old, new = math.isqrt(table.shape[0]), math.isqrt(wanted.shape[0])
    if old**2 != table.shape[0] or new**2 != wanted.shape[0]:
        return None
    square = table.T.unflatten(1, (old, old))  # heads, rows, columns
    return _resized(square, (new, new), antialias).flatten(1).T


def _resized_positions(found: Tensor, wanted: Tensor, prefix_tokens: int) -> Tensor | None:
    """[1, prefix + rows * columns, width] to another square grid."""
    for prefix in (prefix_tokens, 0):
        sides = [math.isqrt(table.shape[1] - prefix) for table in (found, wanted)]
        if all(side**2 == table.shape[1] - prefix for side, table in zip(sides, (found, wanted), strict=True)):
            resized: Tensor = resample_abs_pos_embed(found, [sides[1]] * 2, [sides[0]] * 2, num_prefix_tokens=prefix)
            return resized
    return None


def translated(blueprint: Blueprint, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file of timm, or of the code a model came from, under timm's names and in the model's sizes.

    Args:
        blueprint: The model.
        state: State dict of the file.
    """
    outline = blueprint.outline(classes=1)
    wanted = outline.state_dict()
    prefix = getattr(outline, "num_prefix_tokens", 1)
    fitted = dict(state)
    for name, tensor in state.items():
        target = wanted.get(name)
        if target is not None and tensor.shape != target.shape:
            table = fit_table(name, tensor, target, prefix)
            fitted[name] = tensor if table is None else table
    home = sys.modules[model_entrypoint(blueprint.name.partition(".")[0]).__module__]
    rename = getattr(home, "checkpoint_filter_fn", None)
    if rename is not None:
        # one that fails was given no file of this model; the caller names the first difference
        with suppress(AttributeError, AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            fitted = dict(rename(fitted, outline))
    return fitted


def published(name: str) -> Mapping[str, Tensor]:
    """Download the published weights of a model of timm, or take them from the cache of earlier downloads.

    Args:
        name: Name of the model in timm; with a tag those weights, else timm's first choice.

    Raises:
        WeightsError: There are none, or they cannot be reached; the message names the repository and says what to do.
    """
    facts = Blueprint(name).facts
    if facts.get("hf_hub_id"):
        return read_weights(_from_hub(name, facts["hf_hub_id"], facts.get("hf_hub_filename")))
    if facts.get("url"):
        return read_weights(_from_address(name, facts["url"]))
    others = nearest(name, {full.partition(".")[0] for full in timm.list_pretrained()})
    raise WeightsError(
        f"nobody has published weights of {name} in timm",
        where="pretrained",
        mend=f"Train from scratch, or take {' or '.join(others)}" if others else "Train from scratch",
    )


def _from_hub(name: str, repository: str, filename: str | None) -> Path:
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = repository.partition("@")
    files = (filename,) if filename else FILES
    for wanted in files:
        place: dict[str, Any] = {"repo_id": repository, "filename": wanted, "revision": revision or None}
        try:
            return Path(hf_hub_download(**place, local_files_only=True))
        except LocalEntryNotFoundError:
            pass
        if constants.HF_HUB_OFFLINE:
            continue
        # the client itself tries for half a minute where there is no network at all
        _check_reachable(name, hf_hub_url(repository, wanted, revision=revision or None), repository, wanted)
        try:
            return Path(hf_hub_download(**place, etag_timeout=PATIENCE_S))
        except LocalEntryNotFoundError as error:
            raise _unreachable(name, repository, wanted, "the connection broke") from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise _unreachable(name, repository, wanted, str(error).splitlines()[0]) from error
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"it holds none of {', '.join(files)}"
    raise _unreachable(name, repository, files[0], why)


def _from_address(name: str, address: str) -> Path:
    from timm.models._hub import download_cached_file

    place, _, file = address.rpartition("/")
    try:
        _check_reachable(name, address, place, file)
        return Path(download_cached_file(address, progress=False))
    except (OSError, RuntimeError) as error:
        raise _unreachable(name, place, file, str(error).splitlines()[0]) from error


def _check_reachable(name: str, address: str, repository: str, file: str) -> None:
    """Knock at the server of an address."""
    door = urllib.parse.urlsplit(address)._replace(path="/", query="", fragment="").geturl()
    try:
        urllib.request.urlopen(urllib.request.Request(door, method="HEAD"), timeout=PATIENCE_S).close()
    except urllib.error.HTTPError:
        return  # somebody answers; what it says is the client's business
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # the client may know other certificates
            raise _unreachable(name, repository, file, str(reason)) from error


def _unreachable(name: str, repository: str, file: str, why: str) -> WeightsError:
    place = repository if "://" in repository else f"huggingface.co/{repository}"
    return WeightsError(
        f"the weights of {name} cannot be fetched from {place} ({why})",
        where="pretrained",
        mend=f"Fetch {file} from there on a machine with network, and pass it as weights=FILE",
    )
