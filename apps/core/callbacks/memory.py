"""What to do when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from graftwork.errors import UserError

_CPU_PHRASES = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


@contextmanager
def memory_explained(config: Any) -> Iterator[None]:
    """Turn an allocation that failed into options that need less memory.

    Args:
        config: The app's configuration; its batch size, crop, accumulation and precision are read.

    Raises:
        UserError: Memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "main"
        mend = f"Try {', '.join(smaller(config))}; a fit goes on with --resume last"
        raise UserError(f"the {where} memory is too small for this run", mend=mend) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _CPU_PHRASES)


def smaller(config: Any) -> list[str]:
    """Options with values that need less memory than those of ``config``."""
    data, trainer = config.data, config.trainer
    ideas = []
    size = getattr(data, "batch_size", 1)
    if size > 1:
        accumulated = trainer.accumulate_grad_batches * 2
        ideas.append(f"--data.batch_size {size // 2} with --trainer.accumulate_grad_batches {accumulated}")
    crop = getattr(data, "crop", None)
    if isinstance(crop, int) and crop > 32:
        ideas.append(f"--data.crop {crop // 2 // 32 * 32 or 32}")
    if getattr(data, "eval_batch_size", 1) > 1:
        ideas.append(f"--data.eval_batch_size {data.eval_batch_size // 2}")
    if trainer.precision == "32-true":
        ideas.append("--trainer.precision bf16-mixed")
    if getattr(config.model, "checkpointing", None) is False:
        ideas.append("--model.checkpointing true")
    return ideas or ["a smaller model"]
