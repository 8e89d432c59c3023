"""Names that stores and networks share."""

from __future__ import annotations

IMAGE_LAYER = "image"  # what a store calls prepared images, where a network is trained as a whole
