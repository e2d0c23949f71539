"""What a teacher said of every training image in every stored epoch, on disk.

Augmentation is a pure function of seed, epoch and index, so an image need not be stored: the student makes the same
one again. Of each output the most probable classes are kept; the rest of the probability is spread evenly over the
others. Source: Wu et al. 2022, "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", section 3.1.
Differs: they store the seed of every augmentation beside the output, and probabilities instead of their logarithms,
which would leave no digits of small ones in half precision.

A store is a folder::

    header.json              what it holds and what it was made from
    progress.json            images done of each epoch
    epoch_0.values.npy       [N, K] float16, natural logarithms of probabilities, the largest first
    epoch_0.indices.npy      [N, K] int16 or int32, their classes; -1 where nothing is stored

Shape legend: N training images, K classes kept of each, B batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.classification.losses import SparseTargets
from apps.core.cli.schema import to_plain
from apps.core.run.atomic import json_text, replace_file
from datamodules.classification.config import ImagesConfig
from datamodules.classification.info import ClassificationInfo
from datamodules.classification.layout import SplitFiles
from graftwork.errors import ConfigError, DataError, UserError

log = logging.getLogger(__name__)

HEADER, PROGRESS = "header.json", "progress.json"
VERSION = 1
_KEYS = {"samples", "classes", "kept", "epochs", "identity", "files", "teacher", "packages"}
_SCALE = ("image_size", "channels", "mean", "std", "crop_pct", "interpolation")


def identity(config: ImagesConfig, info: ClassificationInfo, seed: int) -> dict[str, Any]:
    """What decides the pixels of every training image, apart from the files: plain values by option.

    Args:
        config: Options of the data.
        info: Facts about the data.
        seed: Seed of the run.
    """
    facts = asdict(info)
    scale = {f"data.{name}": _plain(facts[name]) for name in _SCALE}
    augment = {f"data.augment.{name}": value for name, value in to_plain(config.augment).items()}
    return {"seed": seed, **scale, **augment}


def describe(
    config: ImagesConfig,
    info: ClassificationInfo,
    seed: int,
    files: SplitFiles,
    teacher: Mapping[str, str],
    *,
    kept: int,
    epochs: int,
) -> dict[str, Any]:
    """The header of a store.

    Args:
        config: Options of the data.
        info: Facts about the data.
        seed: Seed of the run.
        files: Training files.
        teacher: What identifies the teacher.
        kept: Classes to keep of each output, K.
        epochs: Epochs to store.
    """
    return {
        "version": VERSION,
        "samples": len(files),
        "classes": list(info.classes),
        "kept": kept,
        "epochs": epochs,
        "identity": identity(config, info, seed),
        "files": files_digest(files),
        "teacher": dict(teacher),
        "packages": packages(),
    }


def files_digest(files: SplitFiles) -> str:
    """Hash of the training files: path, size and label of each, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(files)):
        path = files.path(index)
        size = path.stat().st_size if path.is_file() else -1
        digest.update(b"%b\0%d\0%d\n" % (bytes(files.paths[index]), size, int(files.labels[index])))
    return digest.hexdigest()


class TeacherStore:
    """A stored teacher.

    Args:
        folder: The folder.
        header: Content of its ``header.json``.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder, self.header = folder, header
        self.samples, self.kept, self.epochs = (int(header[name]) for name in ("samples", "kept", "epochs"))
        self._arrays: dict[tuple[int, str], NDArray[Any]] = {}

    # -- opening --------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | Path) -> TeacherStore:
        """A complete store, to learn from.

        Raises:
            DataError: There is none, it is damaged, or it was never finished; the message says how to go on.
        """
        store = cls._read(Path(folder).expanduser())
        done = store.progress()
        for epoch in range(store.epochs):
            if done.get(epoch, 0) < store.samples:
                text = f"epoch {epoch} holds {done.get(epoch, 0):,} of {store.samples:,} images"
                raise DataError(text, str(folder), "Run the teach command again: it goes on where it stopped")
        return store

    @classmethod
    def _read(cls, folder: Path) -> TeacherStore:
        try:
            header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        except OSError as error:
            mend = f"Make one: python -m apps.classification.teach --store {folder} --weights TEACHER --config ..."
            raise DataError("holds no outputs of a teacher", str(folder), mend) from error
        except ValueError as error:
            raise DataError("is no JSON", str(folder / HEADER), "Remove the folder and make it again") from error
        if not isinstance(header, dict) or header.get("version") != VERSION:
            found = header.get("version") if isinstance(header, dict) else None
            raise DataError(f"has format {found}, expected {VERSION}", str(folder / HEADER), "Make the store again")
        if missing := _KEYS - set(header):
            raise DataError(f"lacks {', '.join(sorted(missing))}", str(folder / HEADER), "Make the store again")
        return cls(folder, header)

    @classmethod
    def create(cls, folder: Path, header: Mapping[str, Any]) -> TeacherStore:
        """A store to write to: a new one, or one that was begun by the same teacher on the same images.

        Args:
            folder: Its folder.
            header: See :func:`describe`; an older one may have fewer epochs.

        Raises:
            ConfigError: The folder holds a store of something else; the first difference is named.
            UserError: The folder holds other files, or cannot be written.
        """
        if (folder / HEADER).is_file():
            found = cls._read(folder).header
            _refuse_another(folder, found, header)
            header = {**header, "epochs": max(int(found["epochs"]), int(header["epochs"]))}
        elif folder.is_dir() and any(folder.iterdir()):
            raise UserError("holds files that are no store", str(folder), "Choose another folder by --store")
        replace_file(folder / HEADER, json_text(header), "--store")
        return cls(folder, header)

    # -- checking -------------------------------------------------------------------------------------------------

    def refuse_other(self, config: ImagesConfig, info: ClassificationInfo, seed: int) -> None:
        """Stop where images would not be those that the teacher saw, or classes not those that it knows.

        Raises:
            ConfigError: They would not; every difference is named.
        """
        if list(info.classes) != self.header["classes"]:
            text = f"the teacher knows {len(self.header['classes'])} classes, the data has others"
            raise ConfigError(text, str(self.folder), "Distil on the data that the store was made from")
        if sum(info.counts) != self.samples:
            text = f"the store holds {self.samples:,} training images, the data has {sum(info.counts):,}"
            raise ConfigError(text, str(self.folder), "Distil on the data that the store was made from")
        wanted, found = identity(config, info, seed), self.header["identity"]
        if wrong := _differences(found, wanted, ", not "):
            raise ConfigError(
                f"was made with {wrong}", str(self.folder), "Use the same values, or make a store for these"
            )
        if changed := _differences(self.header["packages"], packages(), ", now "):
            log.warning("%s was made with %s: its images may differ in a few pixels", self.folder, changed)

    def refuse_other_files(self, files: SplitFiles) -> None:
        """Stop where the training files are not those that the teacher saw.

        Raises:
            ConfigError: A path, a size or a label differs.
        """
        if files_digest(files) != self.header["files"]:
            raise ConfigError(
                f"the training files below {files.folder} are not those that the store was made from (a name, a size "
                "or a class differs)",
                str(self.folder),
                "Distil on the same files, or make the store again",
            )

    # -- reading and writing --------------------------------------------------------------------------------------

    def targets(self, epoch: int, indices: Tensor) -> SparseTargets:
        """The teacher's outputs for a batch; stored epochs come again and again, and so must the images of the loader.

        Args:
            epoch: Epoch of the training.
            indices: Index of each image in the training split, [B].

        Returns:
            Targets on the device of ``indices``.

        Raises:
            DataError: An image was skipped as corrupt when the store was made.
        """
        rows = indices.cpu().numpy()
        stored = epoch % self.epochs
        classes = np.asarray(self._array(stored, "indices")[rows]).astype(np.int64)
        if (classes[:, 0] < 0).any():
            absent = int(rows[classes[:, 0] < 0][0])
            mend = "Its file was skipped as corrupt then; make the store again"
            raise DataError(f"holds nothing of image {absent}", str(self.folder), mend)
        values = np.asarray(self._array(stored, "values")[rows]).astype(np.float32)
        return SparseTargets(torch.from_numpy(classes).to(indices.device), torch.from_numpy(values).to(indices.device))

    def progress(self) -> dict[int, int]:
        """Images done of each epoch."""
        try:
            found = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {int(epoch): int(done) for epoch, done in found.items()}

    def write(self, epoch: int, indices: Tensor, log_probabilities: Tensor) -> None:
        """Store outputs.

        Args:
            epoch: Stored epoch.
            indices: Index of each image, [B].
            log_probabilities: [B, classes].
        """
        top = log_probabilities.topk(self.kept, dim=1)
        rows = indices.cpu().numpy()
        self._array(epoch, "values", writable=True)[rows] = top.values.half().cpu().numpy()
        self._array(epoch, "indices", writable=True)[rows] = top.indices.cpu().numpy()

    def commit(self, epoch: int, done: int) -> None:
        """Bring everything written to the disk, then say so: a run that is killed goes on from here."""
        for array in self._arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        counts = {**self.progress(), epoch: done}
        replace_file(self.folder / PROGRESS, json_text({str(key): counts[key] for key in sorted(counts)}), "--store")

    def _array(self, epoch: int, kind: str, writable: bool = False) -> NDArray[Any]:
        key = (epoch, kind)
        if key not in self._arrays:
            path = self.folder / f"epoch_{epoch}.{kind}.npy"
            if writable and not path.is_file():
                self._make(path, kind)
            try:
                self._arrays[key] = np.load(path, mmap_mode="r+" if writable else "r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"cannot be read: {error}", str(path), "Make the store again") from error
            if self._arrays[key].shape != (self.samples, self.kept):
                raise DataError(f"has shape {self._arrays[key].shape}", str(path), "Make the store again")
        return self._arrays[key]

    def _make(self, path: Path, kind: str) -> None:
        """An array of the full size; its name appears when it is complete."""
        small = len(self.header["classes"]) <= np.iinfo(np.int16).max
        dtype = np.float16 if kind == "values" else np.int16 if small else np.int32
        unfinished = path.with_name(f".{path.name}.tmp")
        array = np.lib.format.open_memmap(unfinished, "w+", dtype, (self.samples, self.kept))
        array[:] = 0 if kind == "values" else -1
        array.flush()
        del array
        unfinished.replace(path)


def _refuse_another(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Stop where a store was begun on other images or by another teacher; epochs and packages may differ."""
    before = _flat(found)
    for key, value in _flat(wanted).items():
        free = key == "epochs" or key == "teacher.weights" or key.startswith("packages.")
        if not free and before.get(key) != value:
            text = f"was begun with {key}={_brief(before.get(key))}, not {_brief(value)}"
            raise ConfigError(text, str(folder), "Go on with the same options, or choose another folder by --store")


def packages() -> dict[str, str]:
    """Versions of what decodes and augments images."""
    import PIL
    import torchvision

    return {"torchvision": str(torchvision.__version__), "pillow": str(PIL.__version__)}


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], word: str) -> str:
    """A phrase for each value that differs."""
    changed = {key: value for key, value in wanted.items() if found.get(key) != value}
    return "; ".join(f"{key}={_brief(found.get(key))}{word}{_brief(value)}" for key, value in changed.items())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
