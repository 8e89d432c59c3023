"""What an image looks like, in a kilobyte: enough to recognise it in another file."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featpipe.store.layout import LOOKS

_SIDE = LOOKS["looks/thumbnail"][1][0]


def look_at(image: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the digest of an image's pixels, its size, and a small grey thumbnail.

    Images whose pixels agree have one digest, whatever format their files are of. The thumbnail is
    squeezed to a square. A photo of 500 × 375 pixels takes 0.7 ms.

    Parameters
    ----------
    image : ndarray of shape (height, width, 3), uint8

    Returns
    -------
    looks : dict
        A value for each of :data:`featpipe.store.layout.LOOKS`.
    """
    pixels = np.ascontiguousarray(image)
    digest = hashlib.sha256(f"{pixels.shape}".encode())
    digest.update(pixels.data)
    small = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return {
        "looks/digest": np.frombuffer(digest.digest()[:16], np.uint8),
        "looks/size": pixels.shape[:2],
        "looks/thumbnail": np.asarray(small.convert("L")),
    }
