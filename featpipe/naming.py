"""Names of datasets as tables show them."""

from __future__ import annotations

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
