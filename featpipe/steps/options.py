"""Options of steps: one declaration gives the YAML key, the command line, the help, the checks."""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from featpipe.errors import UnknownNameError, UsageError
from featpipe.registry import Registry
from featpipe.steps.located import read_located
from featpipe.workspace import user_path

_LARGEST_SEED = 2**32 - 1  # numpy's and scikit-learn's
_DEFAULT: Any = object()  # the option's own default
_METAVARS = {int: "N", float: "X"}
_FEW = 5  # names that help shows; more are listed by `featpipe models` and its like
_SCIENTIFIC = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")  # YAML takes 1e-3 for a text


@dataclass(frozen=True, kw_only=True)
class OptionSpec:
    """One option of a step; made by :func:`option`."""

    help: str  # one sentence for --help
    choices: tuple[str, ...] = ()  # the only values allowed
    registry: Registry[Any] | None = None  # must know the name; of "name:argument", the name
    minimum: float | None = None
    maximum: float | None = None
    check: Callable[[Any], Any] | None = None  # raises UsageError where the value is wrong
    affects_result: bool = True  # whether another value may give other numbers
    # Whether the option only says which input is used: the input's own fingerprint is part of the
    # identity, so the option need not be.
    selects_input: bool = False
    # The value that reproduces what the step did before the option existed; such a value is not
    # part of the identity. Default: the option's default.
    neutral: Any = _DEFAULT
    tunable: bool = False  # whether it lists values that the method chooses among: the grid
    bound: bool = False  # whether a recipe fills it in, if required, from another step's output
    group: str = "Options"  # the heading that help lists it under
    short: str = ""  # another name on the command line: "-o"
    positional: bool = False  # whether the command line takes it without --name
    # Whether it is a random seed, whose values no chart compares.
    seed: bool = False
    symbol: str = ""  # what the literature calls it, for charts; default: its name
    # What the class it belongs to says.
    name: str = ""
    type: Any = str
    default: Any = None
    required: bool = False

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def bare(self) -> Any:
        """The type of a value that is not ``None``."""
        if get_origin(self.type) in (Union, types.UnionType):
            return next(kind for kind in get_args(self.type) if kind is not type(None))
        return self.type

    @property
    def many(self) -> bool:
        """Whether the option takes several values, comma-separated on the command line."""
        return get_origin(self.bare) is tuple

    @property
    def pairs(self) -> bool:
        """Whether the option is a mapping, written KEY=VALUE on the command line."""
        return get_origin(self.bare) is dict

    @property
    def item_type(self) -> type:
        """Type of one value."""
        return get_args(self.bare)[0] if self.many else self.bare

    @property
    def metavar(self) -> str:
        """The placeholder of the value in the help of the command line."""
        if self.pairs:
            return "KEY=V1,V2" if get_args(self.bare)[1] is not Any else "KEY=VALUE"
        few = self.choices or (self.names() if self.registry and len(self.names()) <= _FEW else ())
        one = "|".join(few) if few else _METAVARS.get(self.item_type, "TEXT")
        return f"{one},…" if self.many else one

    def names(self) -> list[str]:
        """Return the values that can be completed."""
        return self.registry.names() if self.registry else list(self.choices)

    def parse(self, value: Any) -> Any:
        """Check a value from YAML, the command line or Python and return it in its type.

        The ``option`` of the UsageError is the name of this one.
        """
        try:
            optional = self.type is not self.bare
            names = self.registry or self.item_type is int  # else auto may be a value
            if value is None or (value == "auto" and names and optional and self.default is None):
                if not optional and not self.bound:
                    raise self._wrong(value)
                return None
            if self.pairs:
                return self._mapping(value)
            if not self.many:
                return self._item(value)
            items = value if isinstance(value, list | tuple) else [value]
            if isinstance(value, str):
                items = [part.strip() for part in value.split(",") if part.strip()]
            if not items:
                raise self._wrong(value, "at least one value, or the option left out")
            parsed = tuple(self._item(item) for item in items)
            if self.selects_input and len(set(parsed)) < len(parsed):
                raise self._wrong(value, "each value once")
            return parsed
        except UsageError as error:
            error.option = self.name
            raise

    def _mapping(self, value: Any) -> Pairs:
        several = get_args(self.bare)[1] is not Any  # values to choose among
        if not isinstance(value, Mapping):
            given, value = [value] if isinstance(value, str) else value, {}
            for text in given:
                key, equals, written = str(text).partition("=")
                if not equals or key in value:
                    raise self._wrong(text, f"{self.metavar}, each key once")
                value[key] = read_located(f"[{written}]" if several else written, self.flag).plain()
        if not all(isinstance(key, str) and key for key in value):
            raise self._wrong(value, self.metavar)
        for listed in value.values() if several else ():
            if not isinstance(listed, list | tuple) or not listed:
                raise self._wrong(listed, "a list of values to choose among")
        try:
            hash(found := Pairs(_numbers(value)))
        except (TypeError, ValueError):
            raise self._wrong(value, "numbers, texts, true, false, null, lists of them") from None
        return found

    def _item(self, value: Any) -> Any:
        kind = self.item_type
        known = isinstance(value, str | int | float | Path)
        if not known or isinstance(value, bool) != (kind is bool):
            raise self._wrong(value)
        if isinstance(value, str) and not value.strip():
            raise self._wrong(value, "a text that is not empty")
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise self._wrong(value)
        try:
            converted: Any = user_path(value) if kind is Path else kind(value)
        except (TypeError, ValueError):
            raise self._wrong(value) from None
        if self.registry is not None:
            self.registry.canonical(str(converted).partition(":")[0])
        if self.choices and converted not in self.choices:
            what = f"{converted!r} is not a choice of {self.flag}."
            raise UnknownNameError(what, str(converted), self.choices)
        if self.minimum is not None and (not math.isfinite(converted) or converted < self.minimum):
            raise self._wrong(converted, f"a number of at least {self.minimum:g}")
        if self.maximum is not None and converted > self.maximum:
            raise self._wrong(converted, f"a number of at most {self.maximum:g}")
        if self.check is not None:
            self.check(converted)
        return converted

    def _wrong(self, value: Any, expected: str | None = None) -> UsageError:
        kinds = {int: "a whole number", float: "a number", bool: "true or false"}
        expected = expected or kinds.get(self.item_type, "a text")
        return UsageError(f"{self.flag} cannot be {value!r}.", expected=expected, got=repr(value))


class Pairs(dict[str, Any]):
    """The value of an option that is a mapping: JSON-like, not changed once it is made."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True, allow_nan=False))


def option(default: Any = _DEFAULT, **properties: Any) -> Any:
    """Declare an option of a step; without a default it is required.

    ``properties`` are the parameters of :class:`OptionSpec`.
    """
    required = default is _DEFAULT
    if properties.get("seed"):
        properties |= {"minimum": 0, "maximum": _LARGEST_SEED}
    properties = {"neutral": default, **properties, "required": required}
    return OptionSpec(**properties, default=None if required else default)


def altered(base: Any, default: Any = _DEFAULT, **properties: Any) -> Any:
    """Declare an inherited option again, with another default or other properties."""
    if default is not _DEFAULT:
        properties |= {"default": default, "neutral": default, "required": False}
    return replace(base, **properties)


def options_of(step: Any) -> dict[str, OptionSpec]:
    """Return the options of a step class, in the order of their definition."""
    known: dict[str, OptionSpec] | None = step.__dict__.get("_options")
    if known is None:
        hints = get_type_hints(step)  # which takes a millisecond
        known = step._options = {
            name: replace(spec, name=name, type=hint)
            for name, hint in hints.items()
            if isinstance(spec := getattr(step, name, None), OptionSpec)
        }
    return known


def plain(value: Any) -> Any:
    """Return the value of an option as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Pairs):
        return dict(value)
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def as_written(value: Any) -> str:
    """Return one value as people write it: a number as 1e-5, not 1e-05 or 0.00001.

    Examples
    --------
    >>> as_written(1e-5), as_written(0.5), as_written(True), as_written("auto")
    ('1e-5', '0.5', 'True', 'auto')
    """
    if not isinstance(value, float):
        return str(value)
    return re.sub(r"e([-+])0*", r"e\1", f"{value:g}").replace("e+", "e")


def _numbers(value: Any) -> Any:
    """Return a YAML value in which texts such as 1e-3 are numbers."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value
