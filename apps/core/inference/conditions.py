"""Where and how the benchmark commands of apps measure: device, threads, type of numbers, compilation.

Imports torch only once the words of a command are known to be right.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from graftwork.errors import ConfigError
from graftwork.names import unknown

Result = TypeVar("Result")

DTYPES = ("float32", "bfloat16", "float16")


class Conditions(NamedTuple):
    """What holds for all measured calls.

    Args:
        device: Torch device.
        dtype: Of :data:`DTYPES`; half types run under autocast.
        compiled: Whether models are compiled first.
    """

    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = False

    def within(self, call: Callable[[], Result]) -> Callable[[], Result]:
        """The same call with this type of numbers."""
        if self.dtype == "float32":
            return call

        import torch

        def run() -> Result:
            with torch.autocast(torch.device(self.device).type, getattr(torch, self.dtype)):
                return call()

        return run

    def described(self) -> str:
        """For the title of a table."""
        import torch

        words = [self.device, self.dtype, f"{torch.get_num_threads()} threads", f"torch {torch.__version__}"]
        return ", ".join(words + ["compiled"] * self.compiled)


PLAIN = Conditions()
"""Float32 on the CPU, step by step."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Let a command take conditions; it has ``--parts``, too."""
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help=f"{', '.join(DTYPES)} (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile the models first, their literal forms not")


def conditions(options: argparse.Namespace) -> Conditions:
    """Conditions that a user asked for; threads are set from here on.

    Args:
        options: Parsed by a parser with :func:`add_options`.

    Raises:
        ConfigError: They are wrong, or there is no such device here.
    """
    if options.threads < 0:
        raise ConfigError(f"--threads {options.threads} must be at least 0", mend="0 leaves torch's choice")
    if options.dtype not in DTYPES:
        raise unknown("dtype", options.dtype, DTYPES, "--dtype")
    if options.compile and options.parts:
        raise ConfigError("--compile is for whole models, --parts measures parts of them", mend="Leave one of them out")

    import torch

    from apps.core.inference.load import choose_device

    device = choose_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    return Conditions(str(device), options.dtype, options.compile)
