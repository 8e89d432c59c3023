"""A map of the test features in two dimensions, with the nearest neighbours of each image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from featpipe.datasets.selection import class_balanced_rows
from featpipe.errors import FeatpipeError
from featpipe.report.charts import Missing
from featpipe.report.formats import percent
from featpipe.report.images import Pictures, sprite
from featpipe.report.material import Group, Method
from featpipe.report.options import ReportOptions
from featpipe.store import FeatureStore
from featpipe.workspace import IMAGE_LAYER

MAX_POINTS = 600  # what five seconds for the whole page allow: 1000 points took t-SNE 3.7 s
MAX_MAPS = 3
_KEPT = 50  # principal components that t-SNE sees, as van der Maaten and Hinton 2008 did it
_NEIGHBOURS = 6
_SCALE = 1000
_TILE = 40
_COLUMNS = 32
_MIN_POINTS = 5  # fewer images span no map


@dataclass(frozen=True)
class FeatureMap:
    """A map for the page; ``spec`` is drawn by the page's script."""

    title: str
    spec: dict[str, Any]
    caption: str


class Atlas:
    """The maps of a report: each kind of features is drawn once, and only a few are.

    Parameters
    ----------
    options : ReportOptions
    """

    def __init__(self, options: ReportOptions) -> None:
        self.options = options
        self._drawn: dict[tuple[str, str], str] = {}

    def maps(self, group: Group, pictures: Pictures) -> list[FeatureMap | Missing]:
        """Return the maps of the features that a group's methods saw."""
        kinds: dict[tuple[str, str], Method] = {}
        for method in group.methods:
            if method.result.stores:
                store = method.result.stores[-1]
                kinds.setdefault((store["fingerprint"], store["layer"]), method)
        if not kinds:
            title = f"Map of the features{group.suffix}"
            return [Missing(title, "no result names the store of its features")]
        return [self._one(key, group, method, pictures) for key, method in kinds.items()]

    def _one(
        self, key: tuple[str, str], group: Group, method: Method, pictures: Pictures
    ) -> FeatureMap | Missing:
        title = f"{method.row['features']} {key[1]}{group.suffix}"
        if key[1] == IMAGE_LAYER:
            return Missing(title, "the network was trained as a whole: no features are stored")
        if key in self._drawn:
            return Missing(title, f"the same features are drawn for {self._drawn[key]}")
        if len(self._drawn) == MAX_MAPS:
            return Missing(title, f"only {MAX_MAPS} maps are drawn in a report")
        self._drawn[key] = group.label
        try:
            features = _find_store(method, self.options), key[1]
            return _map(title, group, features, pictures, self.options)
        except FeatpipeError as error:
            return Missing(title, str(error).splitlines()[0])


def _find_store(method: Method, options: ReportOptions) -> FeatureStore:
    """Return the very store that the result used."""
    known = method.result.stores[-1]
    path = Path(known["path"])
    places = [path, options.workspace.root / path]
    if method.result.path is not None:
        places += [parent / path for parent in method.result.path.parents]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FeatpipeError("its feature store is not on the disk any more", where=path)
    store = FeatureStore(found)
    if store.fingerprint != known["fingerprint"]:
        raise FeatpipeError("its feature store was made anew since, from something else")
    return store


def _map(
    title: str,
    group: Group,
    features: tuple[FeatureStore, str],
    pictures: Pictures,
    options: ReportOptions,
) -> FeatureMap | Missing:
    store, layer = features
    place = {image_id: row for row, image_id in enumerate(store.ids)}
    shown = np.flatnonzero([image_id in place for image_id in group.ids.tolist()])
    if len(shown) > MAX_POINTS:
        shown = shown[class_balanced_rows(group.true[shown], MAX_POINTS, options.seed)]
    if len(shown) < _MIN_POINTS:
        return Missing(title, f"a map needs at least {_MIN_POINTS} test images")
    ids = group.ids[shown].tolist()
    stored = store.features(layer)
    X = np.asarray(stored[[place[image_id] for image_id in ids]], dtype=np.float32)
    X = X.reshape(len(X), -1)
    views, share = project(X, options.seed)
    columns = max((method.columns for method in group.methods), key=len)
    spec = {
        "views": [{"name": name, "xy": _quantised(xy)} for name, xy in views.items()],
        "ids": ids,
        "classes": list(group.classes),
        "columns": list(columns),
        "true": group.true[shown].tolist(),
        "methods": [
            {"name": method.title, "predicted": group.predicted[i][shown].tolist()}
            for i, method in enumerate(group.methods)
        ],
        "neighbours": nearest(X),
        "tile": _TILE,
        "tile_columns": _COLUMNS,
        "sprite": None
        if pictures.missing
        else sprite((pictures.read(image_id) for image_id in ids), _TILE, _COLUMNS),
    }
    part = "" if len(shown) == len(group.ids) else f" of {len(group.ids)}, evenly over the classes"
    caption = (
        f"{len(shown)} test images{part}. PCA: the first two components carry "
        f"{percent(share, 1)} % of the variance. t-SNE (perplexity "
        f"{_perplexity(len(shown)):.3g}, seed {options.seed}) keeps "
        "neighbours together; distances between clusters mean nothing. Neighbours are by cosine, "
        "in all dimensions, among the images shown."
    )
    return FeatureMap(title, spec, caption)


def project(X: NDArray[np.float32], seed: int) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Return PCA and t-SNE coordinates, and the share of variance of the two components.

    One thread: the order in which threads add floats would otherwise show in the picture.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32
    seed : int

    Returns
    -------
    views : dict of str to ndarray of shape (n, 2)
    share : float
    """
    # Equal rows have no variance to share out: 0 / 0.
    with threadpool_limits(1), np.errstate(invalid="ignore"):
        kept = min(_KEPT, *X.shape)
        pca = PCA(
            kept, random_state=seed, svd_solver="randomized" if kept < min(X.shape) else "full"
        )
        components = pca.fit_transform(X.astype(np.float64))
        plane = np.zeros((len(X), 2))
        plane[:, : min(2, kept)] = components[:, :2]
        tsne = TSNE(
            2,
            perplexity=_perplexity(len(X)),
            init=plane / (plane.std() or 1.0) * 1e-4,
            learning_rate="auto",
            max_iter=500,
            angle=0.7,
            random_state=seed,
        ).fit_transform(components)
    share = float(np.nan_to_num(pca.explained_variance_ratio_[:2]).sum())
    return {"t-SNE": tsne.astype(np.float64), "PCA": plane}, share


def nearest(X: NDArray[np.float32], k: int = _NEIGHBOURS) -> list[list[int]]:
    """Return the k nearest other rows of each row, by cosine.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32
    k : int
    """
    unit = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    with threadpool_limits(1):
        similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, len(X) - 1)].tolist()


def _perplexity(n: int) -> float:
    return min(30.0, (n - 1) / 3)


def _quantised(xy: NDArray[np.float64]) -> list[int]:
    """Return x, y, x, y … scaled into 0..1000 with the same scale in both directions."""
    span = float(np.ptp(xy, axis=0).max()) or 1.0
    centred = (xy - (xy.min(axis=0) + xy.max(axis=0)) / 2) / span + 0.5
    return np.rint(centred * _SCALE).astype(int).ravel().tolist()
