"""What a recipe is once it has been read and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from featpipe.errors import RecipeError
from featpipe.steps.old import Step

PENDING = "(made by this recipe)"  # stands for a required option until the plan fills it in


@dataclass(frozen=True)
class Variant:
    """One task of a step, before it is known which stores or results it works on.

    Attributes
    ----------
    label : str
        What tells it from its siblings: ``"seed=1,model=resnet50"``; empty where it has none.
    step : Step
    """

    label: str
    step: Step


@dataclass(frozen=True)
class RecipeStep:
    """One entry of the list ``steps``.

    Attributes
    ----------
    name : str
    kind : str
    line : int
    sources : tuple of str or None
        Names under ``from``; ``None`` where it is left out.
    variants : tuple of Variant
    """

    name: str
    kind: str
    line: int
    sources: tuple[str, ...] | None
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Recipe:
    """A recipe that has been read and checked.

    Attributes
    ----------
    name : str
    where : str
        The file.
    steps : tuple of RecipeStep
    resolved : dict
        The recipe with defaults and overrides worked in, JSON-like; itself a recipe.
    """

    name: str
    where: str
    steps: tuple[RecipeStep, ...]
    resolved: dict[str, Any] = field(repr=False)

    def error(self, what: str, line: int, **details: Any) -> RecipeError:
        """Make an error that names the line."""
        return RecipeError(what, where=f"{self.where}, line {line}", **details)
