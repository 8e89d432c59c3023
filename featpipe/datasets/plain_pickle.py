"""Read a pickle that holds arrays and plain containers, and refuse every other one.

A pickle is a program: whoever unpickles a foreign file runs it. CIFAR's Python version is
distributed in this format all the same; the unpickler here can build dicts, lists, strings,
numbers and NumPy arrays and nothing else.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import DataError


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in an old protocol: as text in Latin-1."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


# The functions that an array's own pickle names, taken from one: their module has moved between
# NumPy 1 and 2, and old files name the old place.
_RECONSTRUCT = np.empty(0, dtype=np.uint8).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None


def load_plain_pickle(path: Path) -> dict[str, Any]:
    """Return the dict that a pickle file holds.

    Parameters
    ----------
    path : Path

    Returns
    -------
    content : dict
        Byte strings of Python 2 become str.

    Raises
    ------
    DataError
        If the file holds anything else than a dict of arrays and plain values.
    """
    try:
        with path.open("rb") as stream:
            content = _PlainUnpickler(stream, encoding="latin1").load()
    except OSError as error:
        raise DataError("The file cannot be read.", where=path, got=error.strerror) from error
    except Exception as error:
        # Damaged pickles raise almost anything: UnpicklingError, EOFError, IndexError, KeyError …
        raise DataError(
            "The file is refused: it is no pickle of plain arrays.",
            where=path,
            got=f"{type(error).__name__}: {error}",
        ) from error
    if not isinstance(content, dict):
        raise DataError("The file does not hold a dict.", where=path, got=type(content).__name__)
    return content
