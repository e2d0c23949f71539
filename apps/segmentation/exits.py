"""``python -m apps.segmentation.exits``: teach a gate which images may leave Mask2Former's encoder early.

Steps B and C of ECO-M2F, see :mod:`apps.segmentation.models.early_exit`; step A is a run of ``fit`` with
``--model.head.exits sample``. Qualities of the exits are kept in a file, so that another price takes seconds; they are
made anew where the parent, the data or the number of images is another.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.core.cli.recipe import run_recipe
from apps.core.cli.words import split
from graftwork.errors import ConfigError

OPTIONS = {
    "weights": "The parent: a checkpoint or a run folder of fit with --model.head.exits sample.",
    "output": "File to write the model with its gate to, .safetensors.",
    "price": "Quality, from 0 to 1, that a layer of the encoder must bring; 0.005 by default.",
    "records": "File of the qualities of the exits, by default beside the output; remade for another parent or data.",
    "images": "Training images to look at, evenly spread; 0, the default, for all.",
}
PRICE = 0.005
ENDING = ".safetensors"


def main(argv: Sequence[str] | None = None) -> int:
    """Rate exits and teach a gate.

    Args:
        argv: Words after the program's name; the process's own if omitted.

    Returns:
        Exit code: 0 done, 2 an error that the user can mend, 130 interrupted.
    """
    return run_recipe(argv, page, _run, "interrupted")


def page() -> str:
    """The help page."""
    width = max(len(name) for name in OPTIONS)
    lines = [
        "usage: python -m apps.segmentation.exits --weights PARENT --output FILE [--price NUMBER] [--KEY VALUE ...]"
    ]
    lines += ["", "Teach a gate how many layers of Mask2Former's encoder an image is worth.", ""]
    lines += [f"  --{name:<{width}}  {text}" for name, text in OPTIONS.items()]
    lines += ["", "Every further option is one of: python -m apps.segmentation fit --help"]
    lines += ["First: python -m apps.segmentation fit --model.head mask2former --model.head.exits sample"]
    lines += ["Then:  python -m apps.segmentation test --weights FILE"]
    return "\n".join(lines)


def _run(words: list[str]) -> int:
    sorted_words = split(words)
    given = dict(sorted_words.overrides)
    weights, output = (sorted_words.options.get(name, "") for name in ("weights", "output"))
    price = _number(given.pop("price", PRICE), "--price")
    images = int(_number(given.pop("images", 0), "--images"))
    records = str(given.pop("records", "")) or f"{output.removesuffix(ENDING)}.exits{ENDING}"
    if not weights or not output:
        raise ConfigError(f"--weights '{weights}' and --output '{output}' must both be given")
    for option, path in (("--output", output), ("--records", records)):
        if not path.endswith(ENDING):
            raise ConfigError(f"{option} {path} must end in {ENDING}")
    from apps.segmentation.gating import add_gate

    paths = (Path(output).expanduser(), Path(records).expanduser())
    for line in add_gate(weights, *paths, price=price, images=images, changes=given):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    return 0


def _number(text: Any, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{option} {text} must be a number, 0 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
