"""Damage to files, drawn with a seed: bytes, lines, values of JSON, members of archives."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from typing import Any

ODD_VALUES = (
    None, True, -1, 0, 3, 10**30, 1e308, float("nan"), "", "\0", "\ud800", "../x", "O", [], {},
    [[[]]], "a" * 10_000, [-1], [10**12, 10**12], {"dtype": "O"},
)  # fmt: skip
ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"\n",
    b",",
    b'"',
    b"'",
    b"-",
    b"[",
    b"*a",
)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return a file's content with damage that its kind makes likely to be read."""
    if zipfile.is_zipfile(io.BytesIO(content)) and rng.random() < 0.7:
        return _in_archive(content, rng)
    if content[:1] == b"{" and rng.random() < 0.7:
        return _in_json(content, rng)
    length = int.from_bytes(content[:8], "little")
    if content[8:9] == b"{" and 8 + length < len(content) and rng.random() < 0.7:  # safetensors
        header = _in_json(content[8 : 8 + length], rng)
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    for _ in range(rng.randint(1, 4)):
        content = _in_bytes(content, rng)
    return content


def _in_bytes(content: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 8, 64, 1024))
    before, struck, after = content[:at], content[at : at + length], content[at + length :]
    return rng.choice(
        (
            before,  # cut off
            before + after,
            before + bytes(len(struck)) + after,
            before + rng.choice(ODD_BYTES) + struck + after,
            before + rng.choice(ODD_BYTES) + after,
            before + struck + struck + after,
            before + bytes(b ^ (1 << rng.randrange(8)) for b in struck[:1]) + struck[1:] + after,
            before + bytes(rng.randrange(256) for _ in struck) + after,
        )
    )


def _in_json(content: bytes, rng: random.Random) -> bytes:
    """Put another value in the place of one, or take it out."""
    root = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(root)
    if places:
        node, key = rng.choice(places)
        if rng.random() < 0.3:
            del node[key]
        elif rng.random() < 0.3:
            node[key] = copy.deepcopy(rng.choice(places)[0])
        else:
            node[key] = rng.choice(ODD_VALUES)
    return json.dumps(root).encode()


def _in_archive(content: bytes, rng: random.Random) -> bytes:
    """Damage one member of a zip archive and pack it again, with the right checksum."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        members = [(info, old.read(info)) for info in old.infolist()]
        struck = rng.choice(members)[0].filename
        for info, inner in members:
            new.writestr(info, mutate(inner, rng) if info.filename == struck else inner)
    return made.getvalue()
