"""Named things that are imported only when they are used.

A registry maps a name to ``"module:attribute"``. Names can therefore be listed, checked and
completed without importing torch or scikit-learn.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from featpipe.errors import UnknownNameError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? "`` for the nearest known name, or an empty string.

    Examples
    --------
    >>> did_you_mean("resnet5O", ["resnet18", "resnet50"])
    "did you mean 'resnet50'? "
    """
    nearest = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}? " if nearest else ""


@dataclass(frozen=True)
class Entry:
    """One registered name: where its object lives, and one line about it."""

    name: str
    target: str
    summary: str
    aliases: tuple[str, ...] = ()

    def load(self) -> Any:
        """Import the module and return the object."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


class Registry:
    """Names of one kind, each with the place of its object.

    Parameters
    ----------
    kind : str
        What is registered, in the singular, as it appears in messages (``"model"``).

    Examples
    --------
    >>> shapes = Registry("shape")
    >>> shapes.add("ordered", "collections:OrderedDict", "a dict that keeps its order")
    >>> shapes.load("ordered").__name__
    'OrderedDict'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._aliases: dict[str, str] = {}

    def add(self, name: str, target: str, summary: str, aliases: Iterable[str] = ()) -> None:
        """Register ``"module:attribute"`` under a name and its aliases."""
        entry = Entry(name, target, summary, tuple(aliases))
        self._entries[name] = entry
        self._aliases.update(dict.fromkeys(entry.aliases, name))

    def entry(self, name: str) -> Entry:
        """Return the entry of a name or alias.

        Raises
        ------
        UnknownNameError
            If no entry has this name; the message says the nearest one.
        """
        key = self._aliases.get(name, name)
        if key not in self._entries:
            raise UnknownNameError(
                f"There is no {self.kind} named {name!r}.",
                expected=", ".join(self._entries),
                next_step=did_you_mean(name, [*self._entries, *self._aliases]).strip() or None,
            )
        return self._entries[key]

    def load(self, name: str) -> Any:
        """Import and return the object registered under a name."""
        return self.entry(name).load()

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._aliases

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> list[str]:
        """Return the names in the order of registration, aliases left out."""
        return list(self._entries)
