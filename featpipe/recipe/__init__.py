"""Recipes: an experiment as data, read and checked before anything runs; see ``docs/recipes.md``.

The rule of lists: an option that takes one value, given a list, is an *axis*: one task per value.
An option that takes several values (``c``, ``k``, an extraction's ``layer``) keeps its list; a list
of lists is an axis over it.
"""

from __future__ import annotations

from featpipe.recipe.model import PENDING, Recipe, RecipeStep, Variant
from featpipe.recipe.reader import parse_recipe, read_recipe

__all__ = ["PENDING", "Recipe", "RecipeStep", "Variant", "parse_recipe", "read_recipe"]
