"""Names of datasets in tables and paths."""

from __future__ import annotations

import re
from pathlib import Path

from featpipe.workspace import user_path


def short_name(dataset: str) -> str:
    """Return the name of a dataset without the folder that contains it.

    Examples
    --------
    >>> short_name("folder:/home/me/My photos"), short_name("stl10")
    ('folder:My photos', 'stl10')
    """
    kind, _, path = dataset.partition(":")
    return f"{kind}:{user_path(path).resolve().name}" if path else kind


def slug(name: str) -> str:
    """Return the name of a dataset as part of a path.

    Examples
    --------
    >>> slug("folder:/home/me/My photos"), slug("stl10"), slug("npz:data/toy.npz")
    ('folder-My-photos', 'stl10', 'npz-toy')
    """
    kind, _, path = name.partition(":")
    words = re.findall(r"\w+", f"{kind} {Path(path).stem}")
    return "-".join(words)
