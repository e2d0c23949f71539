"""Loading that survives the user's data: errors come out of workers as they are, corrupt files are skipped if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.sampler import Key
from graftwork.errors import DataError, UserError

OnCorrupt = Literal["error", "skip"]
Collate = Callable[[Sequence[Any]], Any]


class CorruptSample(DataError):
    """A sample whose file cannot be read; ``where`` is the file. ``on_corrupt: skip`` goes on without it."""


class Fetched(NamedTuple):
    """What a dataset gave for the keys of a batch, before or after collation.

    Args:
        content: Samples, later the batch; None if there is an error.
        skipped: Corrupt files that were passed over.
        error: What the user has to mend; kept as a value, because torch would wrap it in the worker's traceback.
    """

    content: Any
    skipped: tuple[str, ...] = ()
    error: UserError | None = None


class GuardedDataset(Dataset[Any]):
    """A map-style dataset whose errors are values and whose corrupt samples may be replaced.

    Args:
        dataset: Accepts ``(epoch, index)`` as key; may offer ``__getitems__`` for a whole batch.
        on_corrupt: ``error`` stops at a :class:`CorruptSample`; ``skip`` takes the next index that can be read.
    """

    def __init__(self, dataset: Dataset[Any], on_corrupt: OnCorrupt = "error") -> None:
        self.dataset, self.on_corrupt = dataset, on_corrupt

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # map-style datasets have a length

    def __getitem__(self, key: int | Key) -> Any:
        return self.dataset[key]

    def __getitems__(self, keys: Sequence[Key]) -> Fetched:
        """Samples for the keys of a batch."""
        whole = getattr(self.dataset, "__getitems__", None)
        try:
            return Fetched(whole(keys) if whole is not None else [self.dataset[key] for key in keys])
        except CorruptSample as error:
            return self._without_corrupt(keys) if self.on_corrupt == "skip" else Fetched(None, (), error)
        except UserError as error:
            return Fetched(None, (), error)

    def _without_corrupt(self, keys: Sequence[Key]) -> Fetched:
        skipped: list[str] = []
        try:
            samples = [self._readable(key, skipped) for key in keys]
        except UserError as error:
            return Fetched(None, tuple(skipped), error)
        return Fetched(samples, tuple(skipped))

    def _readable(self, key: Key, skipped: list[str]) -> Any:
        epoch, index = key
        for offset in range(len(self)):
            try:
                return self.dataset[(epoch, (index + offset) % len(self))]
            except CorruptSample as error:
                skipped.append(error.where)
        raise DataError("every sample of the split is corrupt", where=skipped[-1], mend="Check the files with doctor")


class _Collate:
    """Collation that lets errors and skipped files pass; a class, because workers must be able to pickle it."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, fetched: Any) -> Fetched:
        if fetched.error is not None:
            return fetched
        try:
            return fetched._replace(content=self.collate(fetched.content))
        except UserError as error:
            return Fetched(None, fetched.skipped, error)


class GuardedLoader(DataLoader[Any]):
    """A loader over a :class:`GuardedDataset` that yields plain batches and raises plain errors.

    Args:
        dataset: The guarded dataset.
        batches: Batch sampler.
        collate: List of samples to a batch.
        num_workers: Worker processes; 0 loads in the main process.
        seed: Seed of the workers' own generators, which no dataset of ours uses.
        on_skip: Told about each corrupt file that was passed over, when its batch is used.
    """

    def __init__(
        self,
        dataset: GuardedDataset,
        batches: Any,
        collate: Collate,
        *,
        num_workers: int = 0,
        seed: int = 0,
        on_skip: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=batches,
            collate_fn=_Collate(collate),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),  # leaves torch's global generator alone
        )
        self.on_skip = on_skip

    def __iter__(self) -> Any:
        return self._plain(super().__iter__())  # workers start here, not at the first batch

    def _plain(self, iterator: Any) -> Iterator[Any]:
        while True:
            try:
                fetched = next(iterator, None)
            except RuntimeError as error:
                if "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
                    raise _worker_killed(error, self.num_workers) from error
                raise
            if fetched is None:
                return
            if fetched.error is not None:
                self._stop(iterator)
                raise fetched.error
            if self.on_skip is not None:
                for file in fetched.skipped:
                    self.on_skip(file)
            yield fetched.content

    def _stop(self, iterator: Any) -> None:
        """End the workers now: garbage collection may close their queues first, and then waits 5 s for each."""
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        self._iterator = None


def _worker_killed(error: RuntimeError, workers: int) -> DataError:
    return DataError(
        f"a process that loads data was killed ({str(error).splitlines()[0]})",
        where=f"data.num_workers={workers}",
        mend="It probably ran out of memory; use fewer workers, or 0 to load in the main process",
    )
