"""Variants of a damaged file: one bit, one swapped pair, a hole, an end too early or too late."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

PLACES = [number / 12 for number in range(12)]  # as shares of the file, its first byte included
VARIANTS = [
    *(("flip", place) for place in PLACES),
    *(("swap", place) for place in PLACES),
    *(("zero", place) for place in PLACES[::2]),
    *(("cut", place) for place in PLACES[::2]),
    *(("append", text) for text in (b"\0", b"\n", b"7", b"PK\x05\x06" + bytes(18))),
]
NAMES = [
    f"{kind} {where if isinstance(where, bytes) else f'{where:.2f}'}" for kind, where in VARIANTS
]


def damaged(content: bytes, variant: tuple[str, Any]) -> bytes:
    """Return a damaged copy: never the same bytes."""
    kind, where = variant
    if kind == "append":
        return content + where
    place = int(where * len(content))
    if kind == "cut":
        return content[:place]
    if kind == "zero":
        holes = range(40, len(content), 40)
        wide = next((n for n in holes if any(content[place : place + n])), len(content))
        return content[:place] + bytes(len(content[place : place + wide])) + content[place + wide :]
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
    digits = re.compile(rb"(\d)(?!\1)(\d)").search(content, place)  # of a number, if there is one
    if digits is None:
        digits = re.compile(rb"(.)(?!\1)(.)", re.DOTALL).search(content)
    assert digits is not None
    return content[: digits.start()] + digits[2] + digits[1] + content[digits.end() :]


def outcome(read: Callable[[], Any], refusal: type[Exception] | tuple[type[Exception], ...]) -> Any:
    """Return what a file is read as, or ``None`` where it is refused as it should be."""
    try:
        return read()
    except refusal:
        return None
