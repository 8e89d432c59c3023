"""A recipe in a workspace: what it would do, and doing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featpipe.pipeline.ownership import check_owner, claim
from featpipe.pipeline.records import Record, RunSummary
from featpipe.pipeline.task import Task, only
from featpipe.pipeline.tasks import make_tasks
from featpipe.recipe import Recipe
from featpipe.steps.old import Context

if TYPE_CHECKING:
    from featpipe.pipeline.forecast import Forecast
    from featpipe.pipeline.runner import Observer


@dataclass(frozen=True)
class Plan:
    """The tasks of a recipe, ready to run.

    Attributes
    ----------
    recipe : Recipe
    tasks : tuple of Task
        In the order in which they run.
    context : Context

    Examples
    --------
    >>> from featpipe.recipe import parse_recipe
    >>> recipe = parse_recipe('''
    ... steps:
    ...   - {step: extract, model: glyphnet, dataset: digits}
    ...   - {step: svm, seed: [0, 1]}
    ... ''')
    >>> [task.name for task in Plan.of(recipe, Context()).tasks]
    ['extract', 'svm[seed=0]', 'svm[seed=1]']
    """

    recipe: Recipe
    tasks: tuple[Task, ...]
    context: Context

    @classmethod
    def of(cls, recipe: Recipe, context: Context, names: Sequence[str] = ()) -> Plan:
        """Plan a recipe, or only some of its steps and what they need.

        Raises
        ------
        RecipeError
            If the recipe cannot be carried out, or would overwrite the report of another one.
        UsageError
            If there is no step of a name.
        """
        tasks = make_tasks(recipe, context.workspace)
        if names:
            tasks = only(tasks, names)
        check_owner(recipe, tasks, context.workspace)
        return cls(recipe, tuple(tasks), context)

    def forecast(self) -> list[Forecast]:
        """Say of each task whether it is done, why, and what it will cost."""
        from featpipe.pipeline.forecast import forecast  # noqa: PLC0415 - brings h5py

        return forecast(self.tasks, self.context)

    def run(self, observers: Sequence[Observer] = (), track: str | None = None) -> RunSummary:
        """Run the tasks that are not done.

        Parameters
        ----------
        observers : sequence of Observer
        track : {"mlflow", "tensorboard"}, optional
            Where to keep parameters, metrics and curves besides.

        Raises
        ------
        MissingExtraError
            If the package that ``track`` needs is not installed.
        """
        from featpipe.pipeline.forecast import expected_seconds  # noqa: PLC0415
        from featpipe.pipeline.runner import run_tasks  # noqa: PLC0415
        from featpipe.pipeline.tracking import make_tracker  # noqa: PLC0415

        watching: list[Observer] = [*observers, _Claims(self)]
        if track is not None:
            watching.append(make_tracker(track, self.recipe, self.context))
        expected = expected_seconds(self.tasks, self.context)
        return run_tasks(self.recipe, self.tasks, self.context, watching, expected)


class _Claims:
    """Remembers which reports this recipe has made."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def started(self, task: Task, number: int, total: int) -> None:
        pass

    def event(self, task: Task, event: object) -> None:
        pass

    def finished(self, record: Record, seconds_left: float | None) -> None:
        if record.succeeded:
            claim(self._plan.recipe, record.task, self._plan.context.workspace)
