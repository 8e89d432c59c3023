"""A frozen network as a scikit-learn transformer, for pipelines: each image is embedded once."""

from __future__ import annotations

import math
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, lru_cache
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from featpipe import backbones
from featpipe.backbones.base import Backbone
from featpipe.backbones.module import register_module
from featpipe.datasets.dataset import DatasetOptions
from featpipe.datasets.given import pixels_of
from featpipe.datasets.images import FileSource
from featpipe.datasets.source import UNLABELLED, Identity
from featpipe.errors import StoreError, UsageError, WeightsError
from featpipe.extraction.batches import ExtractOptions, work_on_images
from featpipe.extraction.step import EXTRACTION_VERSION
from featpipe.fingerprint import FileHashes, database, of_bytes, of_mapping
from featpipe.progress import Progress
from featpipe.workspace import user_path

Vectors = dict[str, NDArray[np.float32]]  # digest of an image → its features

IN_MEMORY: dict[str, Vectors] = {}  # by `fingerprint_`, until the process ends or clears it
_VECTORS = "vectors (image text primary key, vector blob, crc32 integer)"


@dataclass(eq=False, repr=False)
class Embedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turn images into the features of a frozen network.

    The features are those of ``featpipe extract``. An image that occurs again, in another fold or
    for another candidate of a grid, is recognised by its content and not embedded again.

    Images are a sequence of paths, of PIL images or of arrays, (H, W, 3) or (H, W); one array
    (n, H, W, 3) or (n, H, W); or a two-dimensional array of numbers, each row one flattened image.

    Parameters
    ----------
    backbone : str or torch.nn.Module
        Name of a model, as ``featpipe models`` lists it; ``"timm:NAME"``; or a module.
    preprocess : callable, optional
        With a module: turns a PIL image into its input, a float tensor (3, S, S); or a
        :class:`~featpipe.backbones.preprocessing.Preprocessing`.
    fingerprint : str, optional
        With a module: a text that changes when the features do; default: derived from the state
        dict and the ``repr`` of module and transform.
    weights : str
        ``"DEFAULT"``, the name of published weights, a file, or ``"none"``: random ones.
    layer : str, optional
        Whose activations are the features; default: the embedding.
    image_size : int, optional
        Side of the network's input in pixels; default: that of the weights.
    image_fit : {"auto", "crop", "whole"}
        How images are made square, as ``--fit`` of ``featpipe extract``; ``"auto"`` is decided by
        the images that ``fit`` sees.
    image_shape : tuple of int, optional
        Of flattened images: (H, W) or (H, W, 3), one of which may be -1. Default: square, and
        grey where that is possible, else RGB.
    pixel_range : tuple of float or "fit", optional
        The numbers for black and white in arrays. ``"fit"`` takes the smallest and the largest that
        ``fit`` sees in one array, and clips. Default: 0 and 255 for integers, else 0 and 1.
    cache : path or None
        Folder in which features are kept, which processes may share. ``"memory"`` keeps them
        until the process ends, ``None`` not at all.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    runtime : str, optional
        ``"torch"``, ``"openvino"`` or ``"compiled"``; default: chosen for device and network.

    Attributes
    ----------
    fingerprint_ : str
        Changes with everything that changes the features of an image.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.pipeline import make_pipeline
    >>> digits = load_digits()
    >>> embedder = Embedder("glyphnet", pixel_range=(0, 16))
    >>> probe = make_pipeline(embedder, LogisticRegression(max_iter=1000))
    >>> bool(cross_val_score(probe, digits.images[:200], digits.target[:200]).mean() > 0.9)
    True
    """

    backbone: Any = "resnet50"
    _: KW_ONLY
    preprocess: Callable[[Any], Any] | None = None
    fingerprint: str | None = None
    weights: str | os.PathLike[str] = "DEFAULT"
    layer: str | None = None
    image_size: int | None = None
    image_fit: str = "auto"
    image_shape: tuple[int, ...] | None = None
    pixel_range: tuple[float, float] | str | None = None
    cache: str | os.PathLike[str] | None = "memory"
    device: str = "auto"
    runtime: str | None = None

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn the size of the images and, if asked to, their range; ``y`` is ignored.

        Nothing is embedded.
        """
        source, _ = self._source(X, reset=True)
        self._size_ = source.size
        backbone, layer, self.fingerprint_ = self._open()
        self._n_features_out = math.prod(backbone.dim(layer))
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return the features of images, as an array of shape (n_images, n_features), float32.

        Raises
        ------
        FeatpipeError
            If an image cannot be read, or the weights are no longer those that ``fit`` saw.
        """
        check_is_fitted(self)
        source, rows = self._source(X, reset=False)
        backbone, layer, fingerprint = self._open()
        if fingerprint != self.fingerprint_:
            what = "The backbone is not the one that the embedder was fitted with."
            raise WeightsError(what, where=self.weights, next_step="call fit again")
        digests = [digest or "" for digest in source.digests]  # of a file that cannot be opened: ""
        if kept := self._folder and self._folder / f"{self.fingerprint_[:16]}.sqlite":
            known = _read_kept(kept, digests)
        else:
            known = IN_MEMORY.setdefault(self.fingerprint_, {}) if self.cache else {}
        row_of = {digest: row for row, digest in enumerate(digests) if digest not in known}
        new, shapes = list(row_of), {layer: backbone.dim(layer)}
        backbone.prepare((layer,))
        batches = work_on_images(
            lambda number, side: source.read_scaled(row_of[new[number]], side),
            range(len(new)),
            backbone,
            lambda batch: batch.embed(backbone, shapes)[layer].reshape(len(batch.rows), -1),
            ExtractOptions(),
        )
        with closing(batches), Progress.find().task(backbone.name, len(new)) as task:
            for batch, vectors in batches:
                made = {new[number]: vectors[i] for i, number in enumerate(batch.rows)}
                known |= made
                if kept:
                    _keep(kept, made)
                task.advance(len(batch.rows))
        return np.stack([known[digests[row]] for row in rows])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _folder(self) -> Path | None:
        return None if self.cache in (None, "memory") else user_path(str(self.cache))

    def _open(self) -> tuple[Backbone, str, str]:
        """Return the backbone, which stays open for the next fold, its layer and a fingerprint."""
        model, weights = self.backbone, str(self.weights)
        if isinstance(model, str):
            identity = backbones.weights_identity(model, weights, FileHashes(), fetch=True)
        elif self.preprocess is None:
            expected = "preprocess=, its transform: PIL image → float tensor (3, S, S)"
            raise UsageError("How are images prepared for the module?", expected=expected)
        else:
            name = type(model).__name__
            model = register_module(model, self.preprocess, name, self.fingerprint)
            known = backbones.MODELS.get(model).published["DEFAULT"].location.sha256
            identity = f"{known} {self.preprocess!r}"
        named = model, weights, self.device, self.image_size, self.image_fit
        backbone = _opened(identity, *named, sizes=(self._size_,), runtime=self.runtime)
        layer = self.layer or backbone.default_layer
        parts = {"extraction": EXTRACTION_VERSION, "backbone": backbone.describe(), "layer": layer}
        return backbone, layer, of_mapping(parts)

    def _source(self, X: Any, *, reset: bool) -> tuple[FileSource | _Pixels, Sequence[int]]:
        """Return the images, each file once, and for every item of ``X`` the row of its image."""
        if isinstance(X, str | os.PathLike | Image.Image):
            what = "One image by itself is not a sequence of images."
            example = "image" if isinstance(X, Image.Image) else repr(os.fspath(X))
            advice = f"put it into a list: [{example}]"
            raise UsageError(what, expected="a sequence of images or paths", next_step=advice)
        ndim = getattr(X, "ndim", 1)
        if ndim in (1, 3, 4) and hasattr(X, "__len__") and len(X) == 0:
            raise UsageError("There are no images.", expected="at least one")
        if ndim == 2 and X.shape[1] == 1 and hasattr(X, "__array__"):  # a column of a table
            column = np.asarray(X)[:, 0]
            X, ndim = (column, 1) if column.dtype.kind in "OUT" else (X, 2)
        items = list(X) if ndim == 1 and hasattr(X, "__iter__") else []
        paths = [os.fspath(item) for item in items if isinstance(item, str | os.PathLike)]
        if len(paths) < len(items) and paths:
            raise UsageError("Some of the images are paths.", expected="paths only, or none")
        if paths:
            row_of = {path: row for row, path in enumerate(dict.fromkeys(paths))}
            files = Identity("images", "all", (), tuple(row_of), [UNLABELLED] * len(row_of))
            hashes = FileHashes(self._folder and self._folder / "hashes.sqlite")
            source = FileSource(files, Path(), DatasetOptions(hashes=hashes))
            return source, [row_of[path] for path in paths]
        if items and (isinstance(items[0], Image.Image) or getattr(items[0], "ndim", 0) > 1):
            pixels = [one if isinstance(one, Image.Image) else self._pixels(one) for one in items]
            return _Pixels(pixels), range(len(items))
        if ndim not in (3, 4):
            X = validate_data(self, X, reset=reset)
            X = X.reshape(len(X), *(self.image_shape or _square(X.shape[1])))
        if reset and self.pixel_range == "fit":
            self._range_ = float(np.min(X)), float(np.max(X))
        return _Pixels(self._pixels(np.asarray(X))), range(len(X))

    def _pixels(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the numbers of images as 0 (black) to 255 (white)."""
        asked: Any = self.pixel_range
        if values.dtype == np.uint8 and asked is None:
            return values
        if values.dtype.kind not in "buif":
            raise UsageError("The images are not numbers.", got=values.dtype)
        low, high = 0.0, 255.0 if values.dtype.kind in "ui" else 1.0
        if asked == "fit":
            if not hasattr(self, "_range_"):
                raise UsageError("pixel_range='fit' is for images in one array.")
            asked = self._range_
            values = np.clip(values, *asked)
        if asked is not None:
            low, high = asked
        least, greatest = float(values.min()), float(values.max())
        if not low <= least <= greatest <= high:  # not-a-number, too
            what, got = "Pixel values are outside of their range.", f"{least:g} to {greatest:g}"
            expected = f"{low:g} (black) to {high:g} (white)"
            advice = "give pixel_range=(black, white)"
            raise UsageError(what, expected=expected, got=got, next_step=advice)
        scaled = (values.astype(np.float64) - low) * (255 / ((high - low) or 1))
        return np.rint(scaled).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Images in memory: arrays, and images of Pillow, which are converted when they are read."""

    images: Any

    @cached_property
    def digests(self) -> list[str]:
        """A digest of the pixels of each image."""
        images = map(pixels_of, self.images, count())
        return [of_bytes(repr(image.shape).encode(), image.tobytes()) for image in images]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of all images; None if they differ."""
        sizes = {image.shape[:2] for image in map(pixels_of, self.images, count())}
        return sizes.pop() if len(sizes) == 1 else None

    def read_scaled(self, row: int, side: int | None) -> NDArray[np.uint8]:
        """Return an image as upright RGB."""
        return pixels_of(self.images[row], row)


def _square(n: int) -> tuple[int, ...]:
    for channels, shape in ((1, ()), (3, (3,))):
        side = math.isqrt(n // channels)
        if channels * side * side == n:
            return (side, side, *shape)
    what = f"Rows of {n} numbers are not square images."
    raise UsageError(what, next_step="give image_shape=(height, width)")


@lru_cache(maxsize=4)
def _opened(identity: str, *named: Any, **how: Any) -> Backbone:
    """Open a backbone; ``identity`` is that of its weights and of what has no name."""
    return backbones.load_backbone(*named, **how)


# -- features in a folder ------------------------------------------------------------------------


def _read_kept(path: Path, digests: Sequence[str]) -> Vectors:
    """Return the features that are there for some images; damaged ones are left out."""
    query = "select * from vectors where image = ?"
    with _open_kept(path) as connection:
        rows = [row for one in set(digests) for row in connection.execute(query, (one,))]
    return {one: np.frombuffer(blob, "<f4") for one, blob, crc in rows if zlib.crc32(blob) == crc}


def _keep(path: Path, vectors: Vectors) -> None:
    blobs = ((digest, vector.astype("<f4").tobytes()) for digest, vector in vectors.items())
    rows = [(digest, blob, zlib.crc32(blob)) for digest, blob in blobs]
    with _open_kept(path) as connection:
        connection.executemany("insert or replace into vectors values (?, ?, ?)", rows)


@contextmanager
def _open_kept(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with database(path, _VECTORS) as connection:
            yield connection
    except (sqlite3.Error, OSError) as error:
        what = "The cache of features cannot be used."
        advice = "name another folder, or remove this file if it is damaged"
        raise StoreError(what, where=path, got=error, next_step=advice) from error
