"""Packages that are imported when they are first used: those of extras, and what takes long."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from featpipe.errors import MissingExtraError


class Lazy:
    """A module that is imported when one of its names is first asked for.

    Examples
    --------
    >>> colorsys = Lazy("colorsys")
    >>> colorsys.rgb_to_hsv(0, 0, 0.5)[2]
    0.5
    """

    __slots__ = ("_name",)  # nothing else can be set: it would not be set in the module

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # inspect and pickle ask for those of any object
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)


def check_installed(package: str, extra: str) -> None:
    """Raise ``MissingExtraError`` unless a package is there, which an extra installs."""
    if find_spec(package) is None:
        raise MissingExtraError(package, extra)
