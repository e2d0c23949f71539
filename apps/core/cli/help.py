"""Help pages: the verbs and names of an app, and every option of a verb. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apps.core.cli.schema import leaves, section_title
from apps.core.cli.words import FLAGS, VERB_OPTIONS
from apps.core.task import VERBS, Task
from graftwork.names import unknown


def task_page(task: Task) -> str:
    """Verbs, and the names of models, datasets and parts, of one app."""
    lines = [
        f"{task.name}: {task.title}",
        "",
        f"usage: python -m apps.{task.name} VERB [--config FILE] [--KEY VALUE ...]",
        "",
    ]
    lines += _table("verbs", VERBS)
    for kind, registry in task.registries.items():
        lines += ["", f"{kind}: {', '.join(registry.names())}"]
    lines += ["", f"All options of a verb: python -m apps.{task.name} fit --help"]
    return "\n".join(lines)


def _table(title: str, rows: Mapping[str, str]) -> list[str]:
    width = max(len(name) for name in rows)
    return [f"{title}:"] + [f"  {name:<{width}}  {text}" for name, text in rows.items()]


def verb_parser(task: Task, verb: str, default: Any, tree: Mapping[str, Any]) -> Any:
    """A jsonargparse parser with every option of a verb, for help pages and shell completion."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=f"python -m apps.{task.name} {verb}",
        usage="%(prog)s [--config FILE ...] [--KEY VALUE ...]",  # the list of all keys follows below
        description=f"{VERBS[verb].capitalize()}.",
        exit_on_error=False,
    )
    for name, text in VERB_OPTIONS.items():
        parser.add_argument(f"--{name}", type=str, default=None, help=text)
    for name in ("debug", "print_config"):
        parser.add_argument(f"--{name}", action="store_true", help=FLAGS[name])
    groups: dict[str, Any] = {}
    for leaf in leaves(default, tree):
        group = groups.get(leaf.section)
        if group is None:
            title = leaf.section or "configuration"
            group = groups[leaf.section] = parser.add_argument_group(title, section_title(default, leaf.section, tree))
        group.add_argument(f"--{leaf.key}", type=leaf.type, default=leaf.default, help=leaf.help or " ")
    return parser


def completion(tasks: Sequence[Task], shell: str) -> str:
    """Completion script of the command ``graftwork TASK VERB --KEY`` for bash, zsh or tcsh.

    Raises:
        ConfigError: No such shell.
    """
    import shtab
    from jsonargparse import ArgumentParser

    if shell not in shtab.SUPPORTED_SHELLS:
        raise unknown("shell", shell, shtab.SUPPORTED_SHELLS)
    parser = ArgumentParser(prog="graftwork", description="Applied tasks on a shared trunk.")
    by_task = parser.add_subcommands(required=False, dest="task")
    for task in tasks:
        task_parser = ArgumentParser(prog=f"graftwork {task.name}", description=task.title)
        by_task.add_subcommand(task.name, task_parser, help=task.title)
        verbs = task_parser.add_subcommands(required=False, dest="verb")
        for verb in VERBS:
            verbs.add_subcommand(verb, verb_parser(task, verb, task.config(), {}), help=VERBS[verb])
    script: str = shtab.complete(parser, shell)
    return script
