"""Named things that are imported only when they are used.

A registry knows the names of its built-in entries, and of those that other installed packages
bring as entry points, before anything is imported: names are listed, checked and completed without
torch or scikit-learn.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from featpipe.errors import UnknownNameError, UsageError
from featpipe.lazy import Lazy

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")
metadata = Lazy("importlib.metadata")  # a fifth of the time of `--help`


def summary_of(entry: Any) -> str:
    """Return one line about a registered object: its ``summary``, or its docstring's first line."""
    text = getattr(entry, "summary", None) or (entry.__doc__ or "").strip().partition("\n")[0]
    return str(text)


class Registry(Generic[T]):
    """Objects of one kind by name; each has a ``name`` and a one-line summary.

    Parameters
    ----------
    kind : str
        What is registered, in the singular, as it appears in messages (``"model"``). Other
        packages register theirs as entry points of the group ``featpipe.KINDs``.
    builtin, aliases, summaries : mapping of str to str
        Names of the built-in entries, each with the module that registers it; other names of
        entries; one line about built-in entries, so that they are listed without their modules.

    Examples
    --------
    >>> shapes = Registry("shape")
    >>> @shapes.register
    ... class Circle:
    ...     '''Round.'''
    ...     name = "circle"
    >>> shapes.get("circle").__name__, summary_of(Circle)
    ('Circle', 'Round.')
    """

    def __init__(
        self,
        kind: str,
        builtin: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        summaries: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.group = f"featpipe.{kind.replace(' ', '_')}s"
        self._modules = dict(builtin or {})
        self._aliases = dict(aliases or {})
        self._summaries = dict(summaries or {})
        self._loaded: dict[str, T] = {}

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        """Entry points of other packages by name; a name of ours cannot be taken over."""
        header = f"[{self.group}]".encode()  # bytes: an unrelated package may have any encoding
        files = (file for path in sys.path for file in Path(path).glob("*-info/entry_points.txt"))
        if not any(header in file.read_bytes() for file in files):
            return {}
        found = {point.name: point for point in metadata.entry_points(group=self.group)}
        for name in sorted(found.keys() & {*self._modules, *self._aliases}):
            what = f"The package {_package(found[name])!r} registers a {self.kind} named {name!r}"
            hint = "uninstall that package, or ask its authors to choose another name"
            raise UsageError(f"{what}, which is a {self.kind} of featpipe.", next_step=hint)
        return found

    def register(self, entry: T) -> T:
        """Register an object under its ``name``; to be used as a decorator."""
        self._loaded[entry.name] = entry  # type: ignore[attr-defined]
        return entry

    def names(self) -> list[str]:
        """Return all names, aliases left out; nothing is imported."""
        return list(dict.fromkeys([*self._modules, *self._entry_points, *self._loaded]))

    def canonical(self, name: str) -> str:
        """Return the name that an alias means; nothing is imported.

        An unknown name is an UnknownNameError, with the nearest one.
        """
        found = self._aliases.get(name, name)
        if found not in self._modules and found not in self._loaded and name not in self:
            known, what = self.names(), f"There is no {self.kind} named {name!r}."
            near = [*known, *self._aliases]
            raise UnknownNameError(what, name, near, expected=", ".join(known))
        return found

    def aliases_of(self, name: str) -> list[str]:
        """Return the other names of an entry."""
        return [alias for alias, target in self._aliases.items() if target == name]

    def package_of(self, name: str) -> str | None:
        """Return the other package that brings an entry; ``None`` for one of featpipe's own."""
        point = self._entry_points.get(name)
        return None if point is None else _package(point)

    def get(self, name: str) -> T:
        """Return the object registered under a name or alias; its module is imported.

        A package that brings it and cannot be imported is a UsageError.
        """
        name = self.canonical(name)
        if name in self._modules and name not in self._loaded:
            importlib.import_module(self._modules[name])
        elif name not in self._loaded:
            point = self._entry_points[name]
            try:
                self._loaded[name] = point.load()
            except Exception as error:  # whatever another package may raise
                what = f"The {self.kind} {name!r} cannot be loaded: {error}"
                where = f"{point.value} of the package {_package(point)}"
                hint = "repair or uninstall that package"
                raise UsageError(what, where=where, next_step=hint) from error
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._aliases or name in self.names()

    def __iter__(self) -> Iterator[T]:
        """Yield the entries, without those of other packages that cannot be loaded."""
        for name in self.names():
            try:
                entry = self.get(name)
            except UsageError:  # summaries() says why
                continue
            yield entry

    def summary(self, name: str) -> str:
        """Return one line about an entry; imported are only those that do not have it yet."""
        return self._summaries.get(name) or summary_of(self.get(name))

    def summaries(self) -> dict[str, str]:
        """Return one line about each entry, by name; of one that cannot be loaded, why."""
        lines = {}
        for name in self.names():
            try:
                lines[name] = self.summary(name)
            except UsageError as error:
                lines[name] = " ".join(f"{error.what} ({error.details['where']})".split())
        return lines


def _package(entry_point: EntryPoint) -> str:
    return str(entry_point.dist.name) if entry_point.dist else "?"
