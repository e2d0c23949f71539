"""Commands of an app beside its verbs: a page of help, one run, errors as one line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence

from graftwork.errors import UserError


def run_recipe(
    argv: Sequence[str] | None, page: Callable[[], str], run: Callable[[list[str]], int], interrupted: str
) -> int:
    """Run a command.

    Args:
        argv: Words after the program's name; the process's own if omitted.
        page: Gives the help.
        run: Does the work with the words, and gives the exit code.
        interrupted: What to say where the user stops it.

    Returns:
        Exit code: that of ``run``, 2 for an error that the user can mend, 130 where it was interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or "--help" in words or "-h" in words:
        sys.stdout.write(page() + "\n")
        return 0
    try:
        return run(words)
    except UserError as error:
        return _complain(str(error), 2, "--debug" in words)
    except KeyboardInterrupt:
        return _complain(interrupted, 130, "--debug" in words)


def _complain(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.write(f"error: {text}\n")
    return code
