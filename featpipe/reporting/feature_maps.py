"""Maps of the test features in two dimensions, with the nearest neighbours of each image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from featpipe.datasets.selection import class_balanced_rows
from featpipe.errors import FeatpipeError
from featpipe.reporting.data import Group, Method, ReportData
from featpipe.reporting.images import LOSSLESS, data_uri
from featpipe.reporting.sections import SECTIONS, Chart, Content, Missing, Section, percent, render
from featpipe.store import FeatureStore
from featpipe.workspace import IMAGE_LAYER

MAX_POINTS = 600  # a page should take five seconds: 1000 points took t-SNE 3.7 s
MAX_MAPS = 3
_COMPONENTS = 50  # principal components that t-SNE sees, as in van der Maaten and Hinton 2008
_SCALE = 1000
_TILE = 40
_TILE_COLUMNS = 32
_MIN_POINTS = 5  # fewer images span no map


@SECTIONS.register
class FeatureMaps(Section):
    """What the methods saw: each kind of features is drawn once, and only :data:`MAX_MAPS` are."""

    name = "features"
    title = "What the features look like"

    def content(self, data: ReportData) -> Content:
        """Return the first map, and the others behind a switch; nothing without features."""
        return Content(render("features.html.j2", maps=self.maps(data)))

    def maps(self, data: ReportData) -> list[Chart | Missing]:
        """Return a map of each kind of features, or why there is none."""
        maps: list[Chart | Missing] = []
        drawn: dict[tuple[str, str], tuple[Group, Method]] = {}
        for group in data.groups:
            for method in group.methods:
                for known in method.result.stores[-1:]:
                    if known["layer"] != IMAGE_LAYER:
                        drawn.setdefault((known["fingerprint"], known["layer"]), (group, method))
        for (_, layer), (group, method) in list(drawn.items())[:MAX_MAPS]:
            title = f"{method.row['features']} {layer}{group.suffix}"
            if any(part.title == title for part in maps):  # as another extraction prepared them
                title += f", as used by {method.title}"
            try:
                store = data.store(method, method.result.stores[-1])
                maps.append(feature_map(title, group, store, layer, data))
            except FeatpipeError as error:
                maps.append(Missing(title, error.what.splitlines()[0]))
        return maps


def feature_map(
    title: str, group: Group, store: FeatureStore, layer: str, data: ReportData
) -> Chart | Missing:
    """Return the map of a group's test images, as one layer of a store sees them."""
    seed, images = data.report.seed, data.images(group)
    row_of = {image_id: row for row, image_id in enumerate(store.ids)}
    shown = np.flatnonzero([image_id in row_of for image_id in group.ids.tolist()])
    if len(shown) > MAX_POINTS:
        shown = shown[class_balanced_rows(group.true[shown], MAX_POINTS, seed)]
    if len(shown) < _MIN_POINTS:
        return Missing(title, f"a map needs at least {_MIN_POINTS} test images")
    ids = group.ids[shown].tolist()
    stored = store.features(layer)[[row_of[image_id] for image_id in ids]]
    X = np.asarray(stored, dtype=np.float32).reshape(len(ids), -1)
    projections, share = project(X, seed)
    views = []
    for name, xy in projections.items():  # scaled to 0..1000, by the same in both directions
        span = float(np.ptp(xy, axis=0).max()) or 1.0
        centred = (xy - (xy.min(axis=0) + xy.max(axis=0)) / 2) / span + 0.5
        views.append({"name": name, "xy": np.rint(centred * _SCALE).astype(int).ravel().tolist()})
    spec = {
        "kind": "map",
        "views": views,
        "ids": ids,
        "classes": list(group.classes),
        "columns": list(group.columns),
        "true": group.true[shown].tolist(),
        "methods": [
            {"name": method.title, "predicted": predicted[shown].tolist()}
            for method, predicted in zip(group.methods, group.predicted, strict=True)
        ],
        "neighbours": nearest(X),
        "tile": _TILE,
        "tile_columns": _TILE_COLUMNS,
        "sprite": None if images.missing else sprite(map(images.read, ids), len(ids)),
    }
    part = "" if len(shown) == len(group.ids) else f" of {len(group.ids)}, evenly over the classes"
    caption = (
        f"{len(shown)} test images{part}. PCA: the first two components carry "
        f"{percent(share, 1)} % of the variance. t-SNE (perplexity {_perplexity(len(shown)):.3g}, "
        f"seed {seed}) keeps neighbours together; distances between clusters mean nothing. "
        "Neighbours are by cosine, in all dimensions, among the images shown."
    )
    return Chart(title, spec, caption)


def project(X: NDArray[np.float32], seed: int) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Return t-SNE and PCA coordinates (n, 2), and the share of variance of the two components.

    One thread: the order in which threads add floats would otherwise show in the picture.
    """
    # Equal rows have no variance: 0 / 0.
    with threadpool_limits(1), np.errstate(invalid="ignore"):
        kept = min(_COMPONENTS, *X.shape)
        solver = "randomized" if kept < min(X.shape) else "full"
        pca = PCA(kept, random_state=seed, svd_solver=solver)
        components = pca.fit_transform(X.astype(np.float64))
        plane = np.zeros((len(X), 2))
        plane[:, : min(2, kept)] = components[:, :2]
        tsne = TSNE(
            2,
            perplexity=_perplexity(len(X)),
            init=plane / (plane.std() or 1.0) * 1e-4,
            max_iter=500,
            angle=0.7,
            random_state=seed,
        ).fit_transform(components)
    share = float(np.nan_to_num(pca.explained_variance_ratio_[:2]).sum())
    return {"t-SNE": tsne.astype(np.float64), "PCA": plane}, share


def _perplexity(n: int) -> float:
    return min(30.0, (n - 1) / 3)


def nearest(X: NDArray[np.float32], k: int = 6) -> list[list[int]]:
    """Return the k nearest other rows of each row of X, by cosine."""
    unit = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    with threadpool_limits(1):
        similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, len(X) - 1)].tolist()


def sprite(images: Iterable[NDArray[np.uint8] | None], n: int) -> str:
    """Return n images as one, tile by tile, as a data URI; ``None`` leaves a grey tile."""
    size = (_TILE_COLUMNS * _TILE, -(-n // _TILE_COLUMNS) * _TILE)
    whole = Image.new("RGB", size, "#888")
    for number, image in enumerate(images):
        if image is None:
            continue
        tile = Image.fromarray(image)
        if max(tile.size) <= LOSSLESS:  # keep the pixels of tiny images square
            tile = ImageOps.scale(tile, _TILE // max(tile.size), Image.Resampling.NEAREST)
        else:
            tile.thumbnail((_TILE, _TILE), Image.Resampling.BILINEAR, reducing_gap=1.5)
        row, column = divmod(number, _TILE_COLUMNS)
        left, top = (_TILE - tile.width) // 2, (_TILE - tile.height) // 2
        whole.paste(tile, (column * _TILE + left, row * _TILE + top))
    return data_uri(whole, quality=70)
