"""Where recipes are: files of the user, and those that come with featpipe."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from featpipe.errors import RecipeError
from featpipe.registry import did_you_mean


def built_in() -> dict[str, Path]:
    """Return the recipes that come with featpipe, by name."""
    folder = Path(str(resources.files("featpipe.pipelines")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: a path, or the name of one that comes with featpipe.

    Parameters
    ----------
    name : str
        ``"my.yaml"``, ``"demo"`` or ``"pipelines/demo.yaml"``.

    Raises
    ------
    RecipeError
        If there is neither a file nor a recipe of this name.

    Examples
    --------
    >>> find_recipe("demo").name
    'demo.yaml'
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = built_in()
    bare = path.parent in (Path(), Path("pipelines"))
    if bare and path.suffix in ("", ".yaml", ".yml") and path.stem in known:
        return known[path.stem]
    raise RecipeError(
        f"There is no recipe {name!r}.",
        expected=f"a file, or one of {', '.join(known)}",
        got="a folder" if path.is_dir() else None,
        next_step=did_you_mean(path.stem, known).strip() or None,
    )
