"""Which recipe made which report, so that no recipe overwrites the report of another.

Stores and results need no such book: their names hold a fingerprint of everything that changes
them, so what two recipes would both write is the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from featpipe.errors import RecipeError
from featpipe.pipeline.task import Task
from featpipe.recipe import Recipe
from featpipe.steps.old import CompareStep, ReportStep
from featpipe.workspace import Workspace, atomic_write

Book = dict[str, dict[str, str]]


def check_owner(recipe: Recipe, tasks: Iterable[Task], workspace: Workspace) -> None:
    """Complain if a task would write over what another recipe has made.

    Raises
    ------
    RecipeError
        Naming the file and the other recipe.
    """
    book = _read(workspace)
    for task in tasks:
        out = _out(task)
        owner = book.get(str(out)) if out else None
        if out is None or owner is None or owner == _owner(recipe):
            continue
        still_there = Path(owner["file"]).exists() and list(out.parent.glob(f"{out.name}*"))
        if still_there:
            raise recipe.error(
                f"The step {task.part!r} would overwrite what the recipe {owner['recipe']!r} made.",
                task.line,
                got=f"{out}, made by {owner['file']}",
                next_step="give this recipe a name of its own (name: …), "
                "or this step another place (out: …)",
            )


def claim(recipe: Recipe, task: Task, workspace: Workspace) -> None:
    """Remember that a recipe made the file of a task."""
    if out := _out(task):
        book = _read(workspace) | {str(out): _owner(recipe)}
        with atomic_write(_path(workspace)) as temporary:
            temporary.write_text(json.dumps(book, indent=1, sort_keys=True) + "\n", "utf-8")


def _out(task: Task) -> Path | None:
    step = task.step
    if isinstance(step, ReportStep | CompareStep) and step.out is not None:
        return step.out.resolve()
    return None


def _owner(recipe: Recipe) -> dict[str, str]:
    return {"recipe": recipe.name, "file": str(Path(recipe.where).resolve())}


def _path(workspace: Workspace) -> Path:
    return workspace.root / "data" / "recipes.json"


def _read(workspace: Workspace) -> Book:
    try:
        book: Book = json.loads(_path(workspace).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RecipeError(
            f"The book of reports is damaged: {error}",
            where=_path(workspace),
            next_step=f"delete it: rm {str(_path(workspace))!r}",
        ) from error
    return book
