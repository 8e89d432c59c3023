"""Names as they stand in tables, paths and stores."""

from __future__ import annotations

import re
from pathlib import Path

from featpipe.workspace import user_path

IMAGE_LAYER = "image"  # what a store calls prepared images, where a network is trained as a whole


def short_name(dataset: str) -> str:
    """Return the name of a dataset without the folder it lies in.

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
    parts = [kind, Path(path).stem] if path else [kind]
    return "-".join(re.sub(r"[^\w]+", "-", part).strip("-") for part in parts if part).strip("-")
