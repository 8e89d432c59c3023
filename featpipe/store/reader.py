"""Reading sealed stores."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featpipe.errors import StoreError, UnknownNameError
from featpipe.registry import did_you_mean
from featpipe.store.layout import LOGITS, damaged, dataset_name, partial_path
from featpipe.store.seal import Seal


class FeatureStore:
    """A sealed feature store, read-only.

    Everything but the feature arrays is read at once and the file closed again; feature arrays
    are memory-mapped, so worker processes share them and nothing is copied.

    Parameters
    ----------
    path : str or Path

    Attributes
    ----------
    ids : list of str
    labels : ndarray of shape (n,), int64
    classes : tuple of str
    layers : tuple of str
    folds : tuple of ndarray of int64
    source_classes : tuple of (ids, names) or None
        Meaning of the columns of the logits.
    skipped : dict of int to str
        Rows without features, with the reason.
    manifest, run : dict
    fingerprint : str

    Raises
    ------
    StoreError
        If the file is missing, unfinished, damaged or of another schema.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with _explained(self.path):
            self._seal = Seal.read(self.path)
            with h5py.File(self.path, "r", locking=False) as file:
                self._read(file)

    def _read(self, file: h5py.File) -> None:
        self.fingerprint = str(file.attrs["fingerprint"])
        self.manifest: dict[str, Any] = json.loads(_text(file["manifest"]))
        self.run: dict[str, Any] = json.loads(_text(file["run"]))
        self.ids: list[str] = _texts(file["ids"])
        self.labels: NDArray[np.int64] = file["labels"][()]
        self.classes: tuple[str, ...] = tuple(_texts(file["classes"]))
        folds = file.get("folds", {})
        self.folds: tuple[NDArray[np.int64], ...] = tuple(
            folds[str(number)][()] for number in range(len(folds))
        )
        named = file.get("source_classes")
        self.source_classes: tuple[list[str], list[str]] | None = (
            None if named is None else (_texts(named["ids"]), _texts(named["names"]))
        )
        rows = file["skipped/rows"][()].tolist()
        self.skipped = dict(zip(rows, _texts(file["skipped/reasons"]), strict=True))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, {len(self)} rows, layers {self.layers})"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the stored layers, in the order in which they were asked for."""
        return tuple(self.manifest["layers"])

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    @property
    def usable(self) -> NDArray[np.int64]:
        """Rows that have features and a label."""
        mask = self.labels >= 0
        mask[list(self.skipped)] = False
        return np.flatnonzero(mask)

    def features(self, layer: str | None = None) -> NDArray[Any]:
        """Return the features of a layer, memory-mapped.

        Parameters
        ----------
        layer : str, optional
            Default: the first layer that was extracted.

        Returns
        -------
        features : ndarray of shape (n, *row shape), float32 or float16
        """
        layer = layer or self.layers[0]
        if layer == LOGITS and LOGITS in self._seal.arrays:
            return self._array(LOGITS)
        if layer not in self.layers:
            raise UnknownNameError(
                f"The store holds no layer {layer!r}.",
                where=self.path,
                expected=", ".join(self.layers),
                next_step=f"{did_you_mean(layer, self.layers)}"
                f"or extract it: featpipe extract … --layer {layer}",
            )
        return self._array(layer)

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """Logits of the backbone's own classifier, of shape (n, source classes), or ``None``."""
        return self._array(LOGITS) if LOGITS in self._seal.arrays else None

    def _array(self, name: str) -> NDArray[Any]:
        return self._seal.arrays[dataset_name(name)].map(self.path)

    def verify(self) -> None:
        """Read everything and compare it with the digests taken when the store was sealed.

        Raises
        ------
        StoreError
            Naming every array whose content changed.
        """
        with _explained(self.path):
            if changed := Seal.read(self.path).changed(self.path):
                raise damaged(self.path, f"the content of {', '.join(changed)} changed")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say what a file is that cannot be read as a store."""
    try:
        yield
    except FileNotFoundError:
        unfinished = partial_path(path).exists()
        raise StoreError(
            "The feature store is unfinished." if unfinished else "There is no such feature store.",
            where=path,
            next_step="run the extract command again: it continues where it stopped"
            if unfinished
            else "featpipe store list",
        ) from None
    except IsADirectoryError:
        raise StoreError("A feature store is a file, this is a folder.", where=path) from None
    except PermissionError:
        raise StoreError("The feature store may not be read.", where=path) from None
    except (OSError, KeyError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise damaged(path, str(error)) from error


def _text(dataset: h5py.Dataset) -> str:
    return str(dataset.asstr()[()])


def _texts(dataset: h5py.Dataset) -> list[str]:
    return list(dataset.asstr()[()])


def scan_stores(folder: Path) -> tuple[list[FeatureStore], list[StoreError]]:
    """Return the sealed stores below a folder, and what is wrong with those that are damaged.

    Parameters
    ----------
    folder : Path
        Usually ``workspace.features``.
    """
    stores: list[FeatureStore] = []
    errors: list[StoreError] = []
    for path in sorted(folder.rglob("*.h5")):
        try:
            stores.append(FeatureStore(path))
        except StoreError as error:
            errors.append(error)
    return stores, errors
