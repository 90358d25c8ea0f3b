"""The tasks by the names that a configuration has."""

from __future__ import annotations

from imixer.training.run.config import TaskName
from imixer.training.tasks.classification import Classification
from imixer.training.tasks.segmentation import Segmentation
from imixer.training.tasks.task import Task

_TASKS: dict[TaskName, Task] = {"classify": Classification(), "segment": Segmentation()}


def find_task(name: TaskName) -> Task:
    """Return the task of a name."""
    return _TASKS[name]
