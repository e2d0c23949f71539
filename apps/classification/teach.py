"""``python -m apps.classification.teach``: store what a teacher says of training images, for ``fit --distill.store``.

The options are those of ``fit``: ``data``, ``seed`` and the files of ``--config`` say which images, augmented how. The
teacher is that of ``--weights``, with the model and the scale of pixels of its own run; without ``--weights`` it is the
configured ``model`` with the weights that its backbone begins with.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.classification.config import ClassificationConfig
from apps.core.cli.layers import read_yaml
from apps.core.cli.recipe import run_recipe
from apps.core.cli.resolve import resolve
from apps.core.cli.words import split
from graftwork.errors import ConfigError

OPTIONS = {
    "store": "Folder to write to; one that was not finished is gone on with.",
    "epochs": "Epochs to store, 2 by default; the student sees them again and again.",
    "top": "Classes to keep of each output, 10 by default.",
    "weights": "The teacher: a checkpoint or a run folder; without it the configured model is.",
    "config": "Configuration of the student's run; may be given several times.",
}
EPOCHS, TOP = 2, 10


def main(argv: Sequence[str] | None = None) -> int:
    """Store a teacher's outputs.

    Args:
        argv: Words after the program's name; the process's own if omitted.

    Returns:
        Exit code: 0 done, 2 an error that the user can mend, 130 interrupted.
    """
    return run_recipe(argv, page, _run, "interrupted; the same command goes on from here")


def page() -> str:
    """The help page."""
    width = max(len(name) for name in OPTIONS)
    lines = ["usage: python -m apps.classification.teach --store DIR --weights TEACHER --config FILE [--KEY VALUE ...]"]
    lines += ["", "Store what a teacher says of the augmented training images of a run.", ""]
    lines += [f"  --{name:<{width}}  {text}" for name, text in OPTIONS.items()]
    lines += ["", "Every further option is one of: python -m apps.classification fit --help"]
    lines += ["Then: python -m apps.classification fit --config FILE --distill.store DIR"]
    return "\n".join(lines)


def _run(words: list[str]) -> int:
    sorted_words = split(words)
    given = dict(sorted_words.overrides)
    store = str(given.pop("store", ""))
    epochs, top = _whole(given.pop("epochs", EPOCHS), "--epochs"), _whole(given.pop("top", TOP), "--top")
    if not store:
        raise ConfigError("no folder to write to", "--store", "For example --store stores/teacher")
    config = resolve(ClassificationConfig, [read_yaml(Path(path)) for path in sorted_words.configs], given)
    from apps.classification.teaching import teach

    for line in teach(config, sorted_words.options.get("weights", ""), Path(store).expanduser(), epochs, top):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    return 0


def _whole(text: Any, option: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigError(f"{option} {text} must be a whole number, 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
