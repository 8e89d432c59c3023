"""Small real stores for tests, made by the writer itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from featpipe.store import FeatureStore, StoreContent, StoreWriter
from featpipe.store.writer import read_blocks


def content(
    n: int = 60,
    classes: tuple[str, ...] = ("ant", "bee", "cat"),
    dims: int = 8,
    *,
    labels: np.ndarray | None = None,
    split: str = "train",
    dataset: str = "toy",
    n_logits: int = 0,
    **settings: Any,
) -> StoreContent:
    """Return what a small store holds; ``settings`` go to :class:`StoreContent`."""
    manifest = {
        "dataset": {
            "name": dataset,
            "split": split,
            "images": n,
            "fingerprint": f"{dataset}{split}",
        },
        "backbone": {"model": "toynet", "weights": {"name": "none"}},
        "layers": ["avgpool"],
        "dtype": settings.get("dtype", "float32"),
        "dims": dims,
        "n_logits": n_logits,
    }
    shapes: dict[str, tuple[int, ...]] = {"avgpool": (dims,)}
    source = None
    if n_logits:
        shapes["logits"] = (n_logits,)
        source = ([f"s{i}" for i in range(n_logits)], [f"source {i}" for i in range(n_logits)])
    return StoreContent(
        ids=[f"{split}/{i}.png" for i in range(n)],
        labels=np.arange(n) % len(classes) if labels is None else labels,
        classes=classes,
        shapes=shapes,
        dtype=settings.pop("dtype", "float32"),
        manifest=manifest,
        source_classes=source,
        **settings,
    )


def features(what: StoreContent, *, noise: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Return arrays in which classes are clusters, ``noise`` apart from pure."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in what.shapes.items():
        centres = np.random.default_rng(7).normal(size=(len(what.classes) + 1, *shape)) * 2
        arrays[name] = (
            centres[what.labels] + noise * rng.normal(size=(len(what.labels), *shape))
        ).astype(np.float32)
    return arrays


RUN = {"created": "2024-01-01T00:00:00+00:00", "seconds": 1.0, "images_per_s": 60.0}


def sealed(path: Path, what: StoreContent | None = None, **drawing: Any) -> FeatureStore:
    """Write and seal a small store."""
    what = what or content()
    with StoreWriter(path, what) as writer:
        writer.append(features(what, **drawing))
        return writer.seal(RUN)


def kept_rows(partial: Path) -> int:
    """Return how many rows an unfinished store has kept."""
    return sum(facts["rows"] for facts, *_ in read_blocks(partial))


def everything(store: FeatureStore) -> list[Any]:
    """Return all that a store says, its numbers as bytes."""
    said = [store.ids, store.classes, store.manifest, store.fingerprint, store.skipped, store.run]
    said += [store.source_classes, [fold.tolist() for fold in store.folds]]
    arrays = [store.labels, *map(store.features, store.shapes)]
    return said + [(array.dtype, array.shape, array.tobytes()) for array in arrays]
