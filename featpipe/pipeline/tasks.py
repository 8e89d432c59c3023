"""From a recipe to tasks: which step needs the stores or results of which."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter

from featpipe.backbones import MODELS
from featpipe.pipeline.task import Task, file_part, gives_result, in_order
from featpipe.recipe import PENDING, Recipe, RecipeStep, Variant
from featpipe.steps.old import (
    CompareStep,
    EvaluationStep,
    ExplainStep,
    ExtractStep,
    FinetuneStep,
    ReportStep,
    Step,
)
from featpipe.workspace import Workspace

_NOT_IN_NUMBERS = ("title", "force", "save_model")
_MAKES = {ExtractStep: "features", FinetuneStep: "trained network"}


def make_tasks(recipe: Recipe, workspace: Workspace) -> list[Task]:
    """Return the tasks of a recipe in an order in which they can run.

    Raises
    ------
    RecipeError
        If steps need each other in a circle, a step's input is made by no step, or two tasks
        would write the same file.
    """
    _check_circles(recipe)
    made: dict[str, list[Task]] = {}
    ranked = sorted(recipe.steps, key=lambda part: _rank(part.variants[0].step))
    for part in ranked:
        made[part.name] = list(_tasks_of(part, recipe, made, workspace))
    tasks = [task for part in recipe.steps for task in made[part.name]]
    _check_names(recipe, tasks)
    _check_overwriting(recipe, tasks)
    return in_order(tasks)


def _rank(step: Step) -> int:
    if isinstance(step, ExtractStep):
        return 0
    return 1 if gives_result(step) else 2 if isinstance(step, ExplainStep) else 3


def _check_circles(recipe: Recipe) -> None:
    graph = {part.name: part.sources or () for part in recipe.steps}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]
        line = next(part.line for part in recipe.steps if part.name == circle[0])
        raise recipe.error(
            "The steps need each other in a circle.",
            line,
            got=" needs ".join(circle),
            next_step="take one of them out of a 'from'",
        ) from None


def _tasks_of(
    part: RecipeStep, recipe: Recipe, made: dict[str, list[Task]], workspace: Workspace
) -> Iterable[Task]:
    kind = part.variants[0].step
    if isinstance(kind, EvaluationStep):
        for variant in part.variants:
            yield from _evaluations(part, variant, recipe, made)
        return
    if part.sources is not None and gives_result(kind):
        raise recipe.error(f"A step {part.kind!r} starts from no other step.", part.line)
    for variant in part.variants:
        name = _task_name(part.name, variant.label)
        if isinstance(kind, CompareStep | ReportStep):
            yield _gathering(part, variant, recipe, made, workspace)
        elif isinstance(kind, ExplainStep):
            yield from _explanations(part, variant, recipe, made)
        else:
            yield Task(name, part.name, part.line, variant.step)


def _evaluations(
    part: RecipeStep, variant: Variant, recipe: Recipe, made: dict[str, list[Task]]
) -> Iterable[Task]:
    """Yield one task for every extraction whose stores a method is to be evaluated on."""
    step = variant.step
    assert isinstance(step, EvaluationStep)
    if step.train is not None:
        yield Task(_task_name(part.name, variant.label), part.name, part.line, step)
        return
    if step.test is not None:
        raise recipe.error(
            f"The step {part.name!r} names a store of test rows and none of training rows.",
            part.line,
            next_step="name both, train: FILE and test: FILE, or neither",
        )
    extractions = _sources(part, recipe, made, ExtractStep)
    fitting = [task for task in extractions if _fits(step, task.step)]
    if not fitting:
        wanted = {"dataset": step.dataset, "model": step.model, "layer": step.layer}
        raise recipe.error(
            f"The step {part.name!r} needs features that no step of the recipe makes.",
            part.line,
            expected="a step extract with "
            + (", ".join(f"{k}: {v}" for k, v in wanted.items() if v) or "a model and a dataset"),
            got="; ".join(f"{task.name} (line {task.line})" for task in extractions) or "none",
            next_step="add the extract step, or name the files: train: FILE, test: FILE",
        )
    several = sum(isinstance(task.step, ExtractStep) for tasks in made.values() for task in tasks)
    for task in fitting:
        assert isinstance(task.step, ExtractStep)
        bound = dataclasses.replace(step, dataset=task.step.dataset, model=task.step.model)
        label = _joined(variant.label, _tag(task, made) if several > 1 else "")
        yield Task(_task_name(part.name, label), part.name, part.line, bound, (task.name,))


def _fits(step: EvaluationStep, extraction: Step) -> bool:
    assert isinstance(extraction, ExtractStep)
    same_model = step.model is None or (
        MODELS.entry(step.model).name == MODELS.entry(extraction.model).name
    )
    layers = extraction.layer
    return (
        same_model
        and step.dataset in (None, extraction.dataset)
        and (step.layer is None or layers is None or step.layer in layers)
    )


def _tag(extraction: Task, made: dict[str, list[Task]]) -> str:
    """Return what tells an extraction from all others: its label where that is enough."""
    every = [
        task for tasks in made.values() for task in tasks if isinstance(task.step, ExtractStep)
    ]
    labels = [_label_of(task) for task in every]
    own = _label_of(extraction)
    return own if own and labels.count(own) == 1 else _joined(f"from={extraction.part}", own)


def _explanations(
    part: RecipeStep, variant: Variant, recipe: Recipe, made: dict[str, list[Task]]
) -> Iterable[Task]:
    """Yield one task for every training whose network is to be looked at."""
    step = variant.step
    assert isinstance(step, ExplainStep)
    if step.result != PENDING:
        yield Task(_task_name(part.name, variant.label), part.name, part.line, step)
        return
    trainings = _sources(part, recipe, made, FinetuneStep)
    if not trainings:
        raise recipe.error(
            f"The step {part.name!r} needs a network that no step of the recipe trains.",
            part.line,
            expected="a step finetune, or result: NAME",
        )
    for task in trainings:
        label = _joined(variant.label, task.name if len(trainings) > 1 else "")
        yield Task(_task_name(part.name, label), part.name, part.line, step, (task.name,))


def _gathering(
    part: RecipeStep,
    variant: Variant,
    recipe: Recipe,
    made: dict[str, list[Task]],
    workspace: Workspace,
) -> Task:
    """Return a task that sets results side by side: those of all steps, or of those it names."""
    step = variant.step
    assert isinstance(step, CompareStep | ReportStep)
    name = _task_name(part.name, variant.label)
    sources = [t for t in _sources(part, recipe, made, Step) if gives_result(t.step)]
    if step.dataset is not None:
        sources = [t for t in sources if getattr(t.step, "dataset", None) == step.dataset]
    needs = tuple(task.name for task in sources)
    if needs:
        step = dataclasses.replace(step, dataset=None)  # results are named, nothing else is chosen
    if not needs and step.results is None:
        raise recipe.error(
            f"The step {part.name!r} needs results that no step of the recipe makes.",
            part.line,
            expected="a step that evaluates a method, such as svm",
        )
    if isinstance(step, ReportStep) and step.out is None:
        sole = sum(other.kind == part.kind for other in recipe.steps) == len(part.variants) == 1
        file = recipe.name if sole else f"{recipe.name}-{file_part(name)}"
        step = dataclasses.replace(step, out=workspace.reports / file)
    shown = [t for tasks in made.values() for t in tasks if isinstance(t.step, ExplainStep)]
    after = tuple(task.name for task in shown if set(task.needs) <= set(needs))
    return Task(name, part.name, part.line, step, needs, after)


def _sources(
    part: RecipeStep, recipe: Recipe, made: dict[str, list[Task]], kind: type[Step]
) -> list[Task]:
    """Return the tasks of the steps under ``from``; without it, of all steps of the kind."""
    names = list(made) if part.sources is None else list(part.sources)
    for name in part.sources or ():
        fits = name in made and isinstance(made[name][0].step, kind)
        if not fits or (kind is Step and not gives_result(made[name][0].step)):
            makes = _MAKES.get(kind, "results")
            raise recipe.error(
                f"The step {part.name!r} cannot start from {name!r}, which makes no {makes}.",
                part.line,
            )
    return [task for name in names for task in made[name] if isinstance(task.step, kind)]


def _check_names(recipe: Recipe, tasks: Sequence[Task]) -> None:
    """Complain about two tasks of one name: the second would take the place of the first."""
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            raise recipe.error(
                f"Two tasks are called {task.name!r}.",
                task.line,
                expected="options that tell them apart, or steps of their own names",
            )
        seen.add(task.name)


def _check_overwriting(recipe: Recipe, tasks: Sequence[Task]) -> None:
    """Complain about two tasks that would write the same store, result or report."""
    seen: dict[object, Task] = {}
    for task in tasks:
        key: object
        if isinstance(task.step, ReportStep | CompareStep):
            if task.step.out is None:
                continue
            key = task.step.out
        else:
            settings = task.step.settings()
            numbers = {k: str(v) for k, v in settings.items() if k not in _NOT_IN_NUMBERS}
            key = (type(task.step), task.needs, tuple(numbers.items()))
        other = seen.setdefault(key, task)
        if other is not task:
            raise recipe.error(
                f"{task.name!r} would overwrite what {other.name!r} makes.",
                task.line,
                expected="different settings, or another 'out'",
                got=f"the same as at line {other.line}",
            )


def _task_name(part: str, label: str) -> str:
    return f"{part}[{label}]" if label else part


def _label_of(task: Task) -> str:
    return task.name[len(task.part) + 1 : -1]


def _joined(*labels: str) -> str:
    return ",".join(label for label in labels if label)
