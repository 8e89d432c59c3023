"""Checks that all parts of a recipe share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from featpipe.errors import RecipeError
from featpipe.recipe.located import Located
from featpipe.registry import did_you_mean

Options = dict[str, Located]


def mapping_of(node: Located, where: str, what: str) -> Options:
    """Return the value of a node that has to be a mapping."""
    if isinstance(node.value, dict):
        return node.value
    raise RecipeError(
        f"{what} has to be a mapping.",
        where=f"{where}, line {node.line}",
        expected="lines of the form 'key: value'",
        got="nothing" if node.value is None else repr(node.plain())[:80],
    )


def known_keys(
    given: Options, known: Iterable[str], what: str, where: str, also: Sequence[str] = ()
) -> None:
    """Complain about the first key that is not known, naming its line and the nearest one."""
    for key, node in given.items():
        if key not in known:
            raise RecipeError(
                f"{what} has no {key!r}.",
                where=f"{where}, line {node.line}",
                expected=", ".join([*also, *known]) or "nothing",
                next_step=did_you_mean(key, [*known, *also]).strip() or None,
            )


def normal_keys(options: Options) -> Options:
    """Return options under Python's names: ``image-size`` is ``image_size``."""
    return {key.replace("-", "_"): node for key, node in options.items()}


def name_of(node: Located, where: str) -> str:
    """Return a name; it becomes part of file names and of task names."""
    name = str(node.plain())
    if not is_name(name):
        raise RecipeError(
            f"{name!r} cannot be a name.", where=f"{where}, line {node.line}", expected=A_NAME
        )
    return name


A_NAME = "letters, digits, '-', '_' and '.', at least one letter or digit"


def is_name(text: str) -> bool:
    """Return whether a text can be part of file names and of task names."""
    return any(map(str.isalnum, text)) and all(c.isalnum() or c in "-_." for c in text)
