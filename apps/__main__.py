"""``python -m apps``: the tasks, their verbs and where to go on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from apps.core.cli.help import completion
from apps.core.cli.main import main as run_app
from apps.core.cli.tasks import TASKS, get_task
from apps.core.task import VERBS
from graftwork.errors import UserError


def page() -> str:
    """The listing: tasks with titles, verbs with one line each."""
    width = max(len(name) for name in (*TASKS, *VERBS))
    lines = ["usage: python -m apps.TASK VERB [--config FILE] [--KEY VALUE ...]", "", "tasks:"]
    lines += [f"  {name:<{width}}  {get_task(name).title}" for name in TASKS]
    lines += ["", "verbs:", *(f"  {name:<{width}}  {text}" for name, text in VERBS.items())]
    lines += ["", "Names of models, parts and datasets of a task: python -m apps.TASK --help"]
    lines += ["Completion of the command 'graftwork TASK VERB': graftwork --print_completion bash (or zsh, fish, tcsh)"]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """List the tasks, or run ``TASK VERB ...``.

    Returns:
        Exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(page() + "\n")
        return 0
    try:
        if words[0] == "--print_completion":
            sys.stdout.write(completion([get_task(name) for name in TASKS], words[1] if len(words) > 1 else "bash"))
            return 0
        task = get_task(words[0])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return run_app(task, words[1:])


if __name__ == "__main__":
    sys.exit(main())
