"""Read a recipe: its top level, its defaults and what ``--set`` changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featpipe.errors import RecipeError, UsageError
from featpipe.recipe.checks import Options, known_keys, mapping_of, name_of, normal_keys
from featpipe.recipe.entries import EntryReader, Override
from featpipe.recipe.located import Located, locate, read_located
from featpipe.recipe.model import Recipe
from featpipe.steps.old import STEPS, options_of

_TOP_KEYS = ("name", "about", "defaults", "steps")


def read_recipe(path: Path, overrides: Sequence[str] = (), limit: int | None = None) -> Recipe:
    """Read a recipe file; see :func:`parse_recipe`.

    Raises
    ------
    RecipeError
        If the file cannot be read, or the recipe is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("The recipe cannot be read.", where=path, got=error) from error
    return parse_recipe(text, str(path), path.stem, overrides, limit)


def parse_recipe(
    text: str,
    where: str = "recipe",
    name: str = "recipe",
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    text : str
        YAML.
    where : str
        Name of the file, for messages.
    name : str
        Name of the recipe where the text gives none.
    overrides : sequence of str
        ``"option=value"`` for every step that has the option, ``"step.option=value"`` for one.
    limit : int, optional
        Take only so many images of each split, in every step that reads images.

    Raises
    ------
    RecipeError
        Naming the line of whatever is wrong, and the nearest right name.

    Examples
    --------
    >>> recipe = parse_recipe('''
    ... steps:
    ...   - {step: extract, model: [resnet18, resnet50], dataset: stl10}
    ...   - {step: svm, grid: {c: [0.001, 0.01]}}
    ... ''', overrides=["seed=1"])
    >>> [variant.label for variant in recipe.steps[0].variants]
    ['model=resnet18', 'model=resnet50']
    >>> recipe.steps[1].variants[0].step.seed
    1
    """
    root = read_located(text, where)
    top = mapping_of(root, where, "A recipe")
    known_keys(top, _TOP_KEYS, "A recipe", where)
    entries = top.get("steps")
    if entries is None or not isinstance(entries.value, list) or not entries.value:
        line = root.line if entries is None else entries.line
        raise RecipeError(
            "A recipe needs a list of steps.",
            where=f"{where}, line {line}",
            expected="steps: and below it lines that begin with '- step: …'",
        )
    changes = _overrides(overrides)
    if limit is not None:
        changes.append(Override(f"--limit {limit}", None, "limit", locate(limit), needs="dataset"))
    reader = EntryReader(where, _defaults(top.get("defaults"), where), changes)
    steps = tuple(reader.read(entry) for entry in entries.value)
    reader.finish(steps)
    if "name" in top:
        name = name_of(top["name"], where)
    resolved = {"name": name, "steps": reader.resolved}
    if "about" in top:
        resolved["about"] = str(top["about"].plain())
    return Recipe(name, where, steps, resolved)


def _overrides(texts: Sequence[str]) -> list[Override]:
    parsed = []
    for text in texts:
        key, equals, value = text.partition("=")
        step, _, option = key.strip().rpartition(".")
        if not equals or not option:
            raise UsageError(
                f"--set {text!r} says nothing.", expected="--set option=value or step.option=value"
            )
        # Values are YAML, but one that YAML takes for something else is still a text.
        located = locate(read_located(value, f"--set {text}").plain())
        parsed.append(Override(f"--set {text}", step or None, option.replace("-", "_"), located))
    return parsed


def _defaults(node: Located | None, where: str) -> Options:
    if node is None or node.value is None:
        return {}
    defaults = mapping_of(node, where, "'defaults'")
    known = sorted({name for step in STEPS.values() for name in options_of(step)})
    defaults = normal_keys(defaults)
    known_keys(defaults, known, "'defaults'", where)
    return defaults
