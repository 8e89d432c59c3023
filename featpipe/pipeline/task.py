"""What a task is, and the order and choice of tasks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from featpipe.errors import UsageError
from featpipe.registry import did_you_mean
from featpipe.steps.old import CompareStep, ExplainStep, ExtractStep, ReportStep, Step


@dataclass(frozen=True)
class Task:
    """One step to run.

    Attributes
    ----------
    name : str
        Unique: the step's name and, in brackets, what tells it from its siblings.
    part : str
        Name of the recipe's step it comes from.
    line : int
        Where that stands.
    step : Step
        Its options; stores and results are filled in when the tasks it needs have run.
    needs : tuple of str
        Names of the tasks that have to succeed before, and whose files it works on.
    after : tuple of str
        Names of the tasks that run before it, whether they succeed or not.
    """

    name: str
    part: str
    line: int
    step: Step
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def in_order(tasks: Sequence[Task]) -> list[Task]:
    """Return tasks so that each follows what it needs, else in the order of the recipe."""
    by_name = {task.name: task for task in tasks}
    ordered: dict[str, Task] = {}

    def visit(task: Task) -> None:
        if task.name not in ordered:
            for name in (*task.needs, *task.after):
                if name in by_name:
                    visit(by_name[name])
            ordered[task.name] = task

    for task in tasks:
        visit(task)
    return list(ordered.values())


def only(tasks: Sequence[Task], names: Iterable[str]) -> list[Task]:
    """Return the tasks of some steps and what they need.

    Raises
    ------
    UsageError
        If no step or task has such a name.
    """
    by_name = {task.name: task for task in tasks}
    kept: set[str] = set()
    for name in names:
        wanted = [task.name for task in tasks if name in (task.part, task.name)]
        if not wanted:
            known = list(dict.fromkeys(task.part for task in tasks))
            raise UsageError(
                f"--only {name}: the recipe has no such step.",
                expected=", ".join(known),
                next_step=did_you_mean(name, known).strip() or None,
            )
        while wanted:
            task = by_name[wanted.pop()]
            kept.add(task.name)
            wanted += task.needs
    return [task for task in tasks if task.name in kept]


def gives_result(step: Step) -> bool:
    """Whether a step evaluates a method."""
    return not isinstance(step, ExtractStep | ExplainStep | CompareStep | ReportStep)


def file_part(name: str) -> str:
    """Return the name of a task as part of a path.

    Examples
    --------
    >>> file_part("svm[seed=1,model=resnet50]")
    'svm-seed-1-model-resnet50'
    """
    return re.sub(r"[^\w.]+", "-", name).strip("-")
