"""From a recipe to tasks: which step needs the output of which, what is done, what it will cost.

The plan knows what steps need and make, never their kinds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from featpipe.errors import FeatpipeError, UnknownNameError
from featpipe.steps import STEPS
from featpipe.steps.base import Context, Outcome, Status, Step
from featpipe.steps.recipe import Recipe, RecipeStep

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Task:
    """One step to run."""

    name: str  # unique: the step's name and, in brackets, what distinguishes it from its siblings
    part: str  # name of the recipe's step it comes from
    line: int
    step: Step  # its inputs are filled in when the tasks that it needs have run
    needs: tuple[str, ...] = ()  # tasks that have to succeed before; it works on their files
    after: tuple[str, ...] = ()  # tasks that run before, whether they succeed or not

    @property
    def label(self) -> str:
        """What distinguishes it from its siblings: what is in the brackets of its name."""
        return self.name[len(self.part) + 1 : -1]


@dataclass(frozen=True)
class Plan:
    """The tasks of a recipe in a workspace, in the order in which they run."""

    recipe: Recipe
    tasks: tuple[Task, ...]
    context: Context

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        context: Context,
        only: Sequence[str] = (),
        *,
        out_anywhere: bool = False,
    ) -> Plan:
        """Plan a recipe, or ``only`` the steps or tasks named and what they need.

        With ``out_anywhere`` files may be outside of the workspace, and replace those of others.
        Errors are a RecipeError, or a MissingExtraError for a package that some task needs.
        """
        tasks = _Planner(recipe, context).tasks()
        kept: set[str] = set() if only else {task.name for task in tasks}
        for name in only:
            wanted = {task.name for task in tasks if name in (task.part, task.name)}
            if not wanted:
                what = f"--only {name}: the recipe has no such step."
                raise UnknownNameError(what, name, dict.fromkeys(task.part for task in tasks))
            kept |= wanted
        for task in reversed(tasks):  # each follows what it needs
            if task.name in kept:
                kept.update(task.needs)
        chosen = tuple(task for task in tasks if task.name in kept)
        for task in chosen:
            task.step.check_requirements()
            if not out_anywhere:
                _check_place(recipe, task, context.workspace.root)
        return cls(recipe, chosen, context)

    def forecast(self) -> list[tuple[Task, Status]]:
        """Look at the disk and say of each task whether it is done, why, and what it will cost.

        Nothing is downloaded and torch is not imported.
        """
        known: dict[str, Status] = {}
        for task in self.tasks:
            try:
                if waiting := [name for name in task.needs if not known[name].done]:
                    others = f" and {len(waiting) - 3} others" * (len(waiting) > 3)
                    status = Status(False, f"after {', '.join(waiting[:3])}{others}")
                else:
                    step = task.step.bind([known[name].paths for name in task.needs])
                    status = step.status(self.context)
                unknown = not status.done and status.seconds is None
                if unknown and (cost := task.step.estimate(self.context)):
                    status = replace(status, seconds=cost[0], n_bytes=cost[1], basis=cost[2])
            except FeatpipeError as error:
                status = Status(False, error.what)
            known[task.name] = status
        return [(task, known[task.name]) for task in self.tasks]

    def outcome(self) -> Outcome:
        """Return the plan as the outcome of a dry run."""
        rows = [_row(task, status) for task, status in self.forecast()]
        done = sum(row["state"] == "done" for row in rows)
        message = f"{len(rows)} tasks, {done} done, {len(rows) - done} to do; nothing was run"
        if any(_UNKNOWN in (row["time"], row["disk"]) for row in rows):
            message += f"\n{_UNKNOWN}: nothing like it has run in this workspace yet"
        return Outcome("planned", message, facts={"plan": rows}, table=rows)


def file_part(name: str) -> str:
    """Return the name of a task as part of a path: ``svm[seed=1]`` as ``svm-seed-1``."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


class _Planner:
    """Makes tasks part by part; what a part needs is made before it."""

    def __init__(self, recipe: Recipe, context: Context) -> None:
        self.recipe, self.workspace = recipe, context.workspace
        self.made: dict[str, list[Task]] = {}

    def tasks(self) -> list[Task]:
        """Return the tasks of all parts in an order in which they can run."""
        parts = {part.name: part for part in self.recipe.steps}
        for name in self._parts_in_order():
            self.made[name] = list(self._tasks_of(parts[name]))
        every = [task for name in parts for task in self.made[name]]
        self._check_distinct(every)
        tasks = {task.name: task for task in every}
        ordered: dict[str, Task] = {}  # each follows what it needs, else as in the recipe

        def visit(task: Task) -> None:
            if task.name not in ordered:
                for name in (*task.needs, *task.after):
                    visit(tasks[name])
                ordered[task.name] = task

        for task in every:
            visit(task)
        return list(ordered.values())

    def _parts_in_order(self) -> Iterable[str]:
        graph: dict[str, set[str]] = {}
        for part in self.recipe.steps:
            needs, wanted = part.kind.needs, set(part.kind.waits_for)
            if needs and part.sources is None:
                wanted.add(needs.output)
            graph[part.name] = set(part.sources or ()) | {
                other.name
                for other in self.recipe.steps
                if wanted & set(other.kind.makes) and other.kind is not part.kind
            }
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = error.args[1][::-1]
            line = next(part.line for part in self.recipe.steps if part.name == circle[0])
            what, hint = "The steps need each other in a circle.", "take a name out of a 'from'"
            got = " needs ".join(circle)
            raise self.recipe.error(what, line, got=got, next_step=hint) from None

    def _tasks_of(self, part: RecipeStep) -> Iterator[Task]:
        needs = part.kind.needs
        if needs is None and part.sources is not None:
            what = f"A step {part.kind.name!r} starts from no other step."
            raise self.recipe.error(what, part.line)
        made = [task for each in self.recipe.steps for task in self.made.get(each.name, ())]
        every = [task for task in made if needs and needs.output in task.step.makes]
        labels = [task.label for task in every]
        for label, step in part.variants:
            name = _task_name(part.name, label)
            if needs is None or (needs.each and step.has_inputs()):
                yield self._task(part, name, step, ())
                continue
            producers = every
            if part.sources is not None:
                producers = [task for name in part.sources for task in every if task.part == name]
                for source in sorted(set(part.sources) - {task.part for task in every}):
                    what = f"The step {part.name!r} cannot start from {source!r}, which makes no "
                    raise self.recipe.error(f"{what}{needs.output}.", part.line)
            fitting = [task for task in producers if step.accepts(task.step)]
            if not fitting and not step.has_inputs():
                what = f"No step of the recipe makes the {needs.output} that {part.name!r} needs."
                makers = [kind.name for kind in STEPS if needs.output in kind.makes]
                wanted = f"a step that makes them: {', '.join(makers)}"
                got = "; ".join(f"{task.name} (line {task.line})" for task in producers) or "none"
                hint = f"add such a step, or name the files: featpipe {part.kind.name} -h"
                raise self.recipe.error(what, part.line, expected=wanted, got=got, next_step=hint)
            if not needs.each:
                yield self._task(part, name, step, tuple(task.name for task in fitting))
                continue
            for task in fitting:  # named after what distinguishes them: their labels if these do
                tags = [task.label]
                if not task.label or labels.count(task.label) > 1:
                    tags = [f"from={task.part}", task.label]
                name = _task_name(part.name, label, *(tags if len(every) > 1 else ()))
                yield self._task(part, name, step.planned(task.step), (task.name,))

    def _task(self, part: RecipeStep, name: str, step: Step, needs: tuple[str, ...]) -> Task:
        """Return a task, placed, after the tasks whose outputs its inputs should have first."""
        kin = [other for other in self.recipe.steps if other.kind is part.kind]
        sole = len(kin) == 1 and len(part.variants) == 1
        if isinstance(out := getattr(step, "out", None), Path):  # relative to the workspace
            step = step.replace(out=self.workspace.root / out)
        placed = step.placed(self.recipe.name, "" if sole else file_part(name), self.workspace)
        others = {task.name: task for tasks in self.made.values() for task in tasks}
        behind = {*needs, *(name for need in needs for name in others[need].needs)}
        after = tuple(
            task.name
            for task in others.values()
            if set(step.waits_for) & set(task.step.makes) and set(task.needs) <= behind
        )
        return Task(name, part.name, part.line, placed, needs, after)

    def _check_distinct(self, tasks: Sequence[Task]) -> None:
        """Complain about two tasks of one name, or that would write the same files."""
        first: dict[object, Task] = {}  # of each name and of each output
        for task in tasks:
            if first.setdefault(task.name, task) is not task:
                what = f"Two tasks are called {task.name!r}."
                expected = "options that distinguish them, or steps with different names"
                raise self.recipe.error(what, task.line, expected=expected)
            output = task.step.output()
            key = output if isinstance(output, Path) else (type(task.step), task.needs, output)
            other = first.setdefault(key, task)
            if other is not task and output is not None:
                what = f"{task.name!r} would overwrite what {other.name!r} makes."
                got = f"the same as at line {other.line}"
                expected = "different settings, or another 'out'"
                raise self.recipe.error(what, task.line, expected=expected, got=got)


def _check_place(recipe: Recipe, task: Task, root: Path) -> None:
    """Refuse a file outside of the workspace: the recipe may come from someone else."""
    out, hint = task.step.output(), "add --out-anywhere to allow it"
    if not isinstance(out, Path):
        return
    if not out.resolve().is_relative_to(root.resolve()):
        what = f"{task.name!r} would write outside of the workspace."
        expected = f"an 'out' below {root.resolve()}"
        raise recipe.error(what, task.line, expected=expected, got=out, next_step=hint)
    if getattr(task.step, "force", False):
        what = f"{task.name!r} would replace files that featpipe did not write."
        raise recipe.error(what, task.line, got="force: true", next_step=hint)


def _row(task: Task, status: Status) -> dict[str, Any]:
    """Return a row of the table that ``--dry-run`` shows."""
    time = disk = "–" if status.done else _UNKNOWN
    if not status.done and (seconds := status.seconds) is not None:
        minutes = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
        time = f"{seconds:.1f} s" if seconds < 60 else minutes
    if not status.done and status.n_bytes is not None:
        disk = f"{status.n_bytes / 1e6:.1f} MB"
    return {
        "task": task.name,
        "key": status.key,
        "state": "done" if status.done else "to do",
        "why": status.why,
        "time": f"{time} {status.basis}".strip(),
        "disk": disk,
    }


def _task_name(part: str, *labels: str) -> str:
    label = ",".join(filter(None, labels))
    return f"{part}[{label}]" if label else part
