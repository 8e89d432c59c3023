"""What a step is: one definition gives its YAML keys, its options, their help and their checks.

A step is a frozen dataclass whose fields are made by :func:`option`. Nothing here knows what a
step does; ``runner`` names the function that does it, imported when the step runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from featpipe.errors import UsageError
from featpipe.progress import SILENT, Progress
from featpipe.registry import OldRegistry, did_you_mean
from featpipe.workspace import Workspace, user_path

LARGEST_SEED = 2**32 - 1  # numpy's and scikit-learn's


def option(  # noqa: PLR0913 - one keyword per property of an option
    default: Any = MISSING,
    *,
    help: str,
    choices: tuple[str, ...] | None = None,
    registry: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    grammar: Callable[[str], Any] | None = None,
    positional: bool = False,
) -> Any:
    """Declare an option of a step.

    Parameters
    ----------
    default : object
        Left out: the option is required.
    help : str
        One sentence for ``--help``.
    choices : tuple of str, optional
        The only values allowed.
    registry : str, optional
        ``"module:REGISTRY"`` that must know the name; ``name:argument`` looks up ``name``.
    minimum, maximum : float, optional
        Smallest and largest number allowed.
    grammar : callable, optional
        Reads the value's small language and raises ``UsageError`` where it is none of it; see
        :mod:`featpipe.steps.grammar`.
    positional : bool
        Whether the command line takes it without ``--name``.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "registry": registry,
        "minimum": minimum,
        "maximum": maximum,
        "grammar": grammar,
        "positional": positional,
    }
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Context:
    """What a step runs in: the workspace, who hears of progress, how many jobs.

    Parameters
    ----------
    workspace : Workspace
    progress : Progress
    jobs : int
        Worker processes of joblib; ``-1`` means one per core. Never changes a number.
    command : str
        The command as the user wrote it, for the provenance.
    recipe : mapping, optional
        The resolved recipe that the step belongs to, kept with its result.
    """

    workspace: Workspace = dataclasses.field(default_factory=Workspace.find)
    progress: Progress = SILENT
    jobs: int = -1
    command: str = ""
    recipe: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a step has done.

    Parameters
    ----------
    status : {"done", "up to date"}
    message : str
        One line for the terminal.
    paths : tuple of Path
        Files it made or found.
    facts : mapping
        The same as data, for ``--json``.
    exit_code : int
        0, or 1 where the step did its work but something was left out (skipped images).
    table : list of dict, optional
        Rows to show as a table.
    """

    status: str
    message: str
    paths: tuple[Path, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    table: list[dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """Base of all steps; see the module's docstring."""

    kind: ClassVar[str]
    summary: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()
    runner: ClassVar[str]
    chosen: ClassVar[tuple[str, ...]] = ()  # options that list values to choose from
    filled: ClassVar[tuple[str, ...]] = ()  # required options that a recipe fills in itself

    @property
    def name(self) -> str:
        """The same as new steps call it."""
        return self.kind

    def __post_init__(self) -> None:
        for name, spec in options_of(type(self)).items():
            object.__setattr__(self, name, spec.parse(getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Refuse options that contradict each other; a step that has such says which."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Make a step from YAML keys (``image_size`` or ``image-size``).

        Raises
        ------
        UsageError
            Naming the unknown, missing or wrong key and the nearest right one.
        """
        known = options_of(cls)
        normal = {str(key).replace("-", "_"): value for key, value in values.items()}
        if len(normal) != len(values):
            raise UsageError(
                f"The step {cls.kind!r} has an option written twice, with '-' and with '_'.",
                where=where or None,
                got=", ".join(map(str, values)),
            )
        for key in normal:
            if key not in known:
                raise UsageError(
                    f"The step {cls.kind!r} has no option {key!r}.",
                    where=where or None,
                    expected=", ".join(known),
                    next_step=did_you_mean(key, known).strip() or None,
                )
        missing = [name for name, spec in known.items() if spec.required and name not in normal]
        if missing:
            raise UsageError(
                f"The step {cls.kind!r} needs {', '.join(missing)}.", where=where or None
            )
        return cls(**normal)

    def settings(self) -> dict[str, Any]:
        """Return all options as JSON-like values."""
        return {name: _plain(getattr(self, name)) for name in options_of(type(self))}

    def run(self, context: Context | None = None) -> Outcome:
        """Run the step."""
        module, _, function = self.runner.partition(":")
        return getattr(importlib.import_module(module), function)(self, context or Context())


@dataclass(frozen=True)
class OptionSpec:
    """One option, as the command line and the recipe reader need it."""

    name: str
    type: Any
    required: bool
    default: Any
    help: str
    choices: tuple[str, ...] | None
    registry: str | None
    minimum: float | None
    maximum: float | None
    grammar: Callable[[str], Any] | None
    positional: bool

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def many(self) -> bool:
        """Whether the option takes several values, comma-separated on the command line."""
        return get_origin(_without_none(self.type)) is tuple

    @property
    def item_type(self) -> type:
        """Type of one value."""
        bare = _without_none(self.type)
        return get_args(bare)[0] if self.many else bare

    def names(self) -> list[str] | None:
        """Return the values that can be completed, if they are known."""
        if self.registry is not None:
            return self._registry().names()
        return list(self.choices) if self.choices else None

    def _registry(self) -> OldRegistry:
        module, _, attribute = str(self.registry).partition(":")
        return getattr(importlib.import_module(module), attribute)

    def parse(self, value: Any) -> Any:
        """Check a value from YAML, the command line or Python and return it in its type."""
        if value == "auto" and self.item_type is int and self.default is None:
            value = None
        if value is None:
            if self.type is _without_none(self.type):
                raise self._wrong(value)
            return None
        if not self.many:
            return self._item(value)
        items = value if isinstance(value, list | tuple) else [value]
        if isinstance(value, str):
            items = [part.strip() for part in value.split(",") if part.strip()]
        if not items:
            raise self._wrong(value, "at least one value, or nothing said at all")
        return tuple(self._item(item) for item in items)

    def _item(self, value: Any) -> Any:
        converted = self._convert(value)
        if self.registry is not None:
            self._registry().entry(str(converted).partition(":")[0])
        if self.choices and converted not in self.choices:
            raise UsageError(
                f"{converted!r} is not a choice of {self.flag}.",
                expected=", ".join(self.choices),
                next_step=did_you_mean(str(converted), self.choices).strip() or None,
            )
        if self.minimum is not None and (not math.isfinite(converted) or converted < self.minimum):
            raise self._wrong(value, f"a number of at least {self.minimum:g}")
        if self.maximum is not None and converted > self.maximum:
            raise self._wrong(value, f"a number of at most {self.maximum:g}")
        if self.grammar is not None:
            self.grammar(converted)
        return converted

    def _convert(self, value: Any) -> Any:
        kind = self.item_type
        if kind is bool:
            if not isinstance(value, bool):
                raise self._wrong(value)
            return value
        if isinstance(value, bool) or not isinstance(value, str | int | float | Path):
            raise self._wrong(value)
        if isinstance(value, str) and not value.strip():
            raise self._wrong(value, "a text that is not empty")
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise self._wrong(value)
        try:
            return user_path(value) if kind is Path else kind(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise self._wrong(value) from None

    def _wrong(self, value: Any, expected: str | None = None) -> UsageError:
        article = {int: "a whole number", float: "a number", bool: "true or false"}
        return UsageError(
            f"{self.flag} cannot be {value!r}.",
            expected=expected or article.get(self.item_type, "a text"),
            got=repr(value),
        )


def options_of(step: type[Step]) -> dict[str, OptionSpec]:
    """Return the options of a step class, in the order of their definition."""
    hints = get_type_hints(step)
    return {
        item.name: OptionSpec(
            item.name,
            hints[item.name],
            item.default is MISSING,
            None if item.default is MISSING else item.default,
            **item.metadata,
        )
        for item in dataclasses.fields(step)
    }


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
