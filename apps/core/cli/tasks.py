"""The apps by name."""

from __future__ import annotations

from apps.core.task import Task
from graftwork.components import import_dotted
from graftwork.names import unknown

TASKS = {
    "forecasting": "apps.forecasting.config:TASK",
    "classification": "apps.classification.config:TASK",
    "superres": "apps.superres.config:TASK",
    "segmentation": "apps.segmentation.config:TASK",
}


def get_task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        ConfigError: No such task; the nearest names are given.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    task: Task = import_dotted(TASKS[name])
    return task
