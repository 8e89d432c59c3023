"""What the audit finds of what is known: near-duplicates, wrong labels, planted leaks, its time.

    python benchmarks/audit.py --shared DIR [--weights FILE] [--out benchmarks/results/audit.json]

DIR/data holds ``cifar10/near_duplicates.npz`` (pairs confirmed by people: ciFAIR, Barz and Denzler
2020), ``cifar10/train_first4000.npz`` and ``first4000_human_labels.npz`` (CIFAR-10N, Wei et al.
2022) and ``imagenette-val500``. ResNet-18 at 64 pixels for CIFAR-10, at 224 for photos. Labels are
compared with cleanlab's scores on the same probabilities, where it is installed.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featpipe.audit import duplicates
from featpipe.audit.audit import Audit
from featpipe.audit.labels import doubts, out_of_sample
from featpipe.backbones import load_backbone
from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.datasets.images import read_image
from featpipe.datasets.source import ArraySource, Identity, ImageSource
from featpipe.extraction.engine import extract_source, look_at
from featpipe.provenance import environment
from featpipe.store import FeatureStore, StoreContent, StoreWriter
from featpipe.store.layout import LOOKS

try:
    from cleanlab.count import num_label_issues
    from cleanlab.rank import get_label_quality_scores
except ImportError:
    num_label_issues = None

HERE = Path(__file__).resolve().parent
PLANTED = 100  # images of the test split, of which the training split has a copy


class Pictures(ImageSource):
    """Images in memory, of any sizes."""

    def __init__(self, split: str, images: list[np.ndarray], labels: list[int], classes: int):
        ids = tuple(f"{split}/{row}" for row in range(len(images)))
        names = tuple(f"class {k}" for k in range(classes))
        super().__init__(Identity("photos", split, names, ids, labels), split, split)
        self.images = images

    def read(self, row: int) -> np.ndarray:
        """Return one image."""
        return self.images[row].copy()


def embed(sources: list[ImageSource], folder: Path, **how: Any) -> list[FeatureStore]:
    """Return a store for each source."""
    backbone = load_backbone("resnet18", how.pop("weights"), "cpu", **how)
    stores = []
    for number, source in enumerate(sources):
        path = folder / f"{len(list(folder.iterdir()))}-{number}.h5"
        stores.append(extract_source(source, backbone, path))
    return stores


def near_duplicates(data: Path, weights: str, folder: Path) -> dict[str, Any]:
    """Rank test images of CIFAR-10 by the score of their best partner in training."""
    known = np.load(data / "cifar10" / "near_duplicates.npz")
    pairs = known["pairs"]
    classes = tuple("0123456789")
    sources = []
    for split in ("train", "test"):
        images = known[f"{split}_images"]
        ids = tuple(f"{split}/{row}" for row in range(len(images)))
        labels = known[f"{split}_labels"] if f"{split}_labels" in known else [0] * len(images)
        sources.append(ArraySource(Identity("cifar", split, classes, ids, labels), images))
    stores = embed(sources, folder, weights=weights, image_size=64)
    rows = duplicates.whitened(stores, None)
    n_train, n = len(stores[0]), len(rows)
    unit = np.concatenate([np.asarray(store.features(), np.float32) for store in stores])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    test, train = np.arange(n_train, n), np.arange(n_train)
    near, _ = duplicates.nearest(rows, test, train, duplicates.CANDIDATES)
    usual = duplicates.nearest(rows, np.arange(n), np.arange(n))
    thumbnails = np.concatenate([store.looks("thumbnail") for store in stores])

    both = duplicates._COSINE + duplicates._CORRELATION

    def scored(cosine: float) -> np.ndarray:
        """Return the score of each test image, given the weight of the cosine in the same sum."""
        weights = {"_COSINE": cosine, "_CORRELATION": both - cosine}
        with mock.patch.multiple(duplicates, **weights):
            found = duplicates.score_pairs(
                *(rows, np.repeat(test, near.shape[1]), near.ravel()),
                *(usual, lambda r: thumbnails[r]),
                least=1e-9,
            )
        score = np.zeros(n - n_train)
        np.maximum.at(score, found["b"].to_numpy() - n_train, found["score"].to_numpy())
        return score

    score = scored(duplicates._COSINE)
    true = np.isin(np.arange(n - n_train), pairs[:, 0])
    flagged = score >= duplicates.THRESHOLD
    simple = prototype(
        np.concatenate([known["train_images"], known["test_images"]]),
        n_train,
        unit[n_train:] @ unit[:n_train].T,
    )
    # The weights were fitted to these pairs; here they are chosen on one half of the test images,
    # and the other half is ranked.
    several = [scored(weight) for weight in np.linspace(1, 14, 14)]
    half = np.arange(len(true)) % 2 == 0
    halves = []
    for chosen, asked in ((half, ~half), (~half, half)):
        best = max(several, key=lambda s: average_precision_score(true[chosen], s[chosen]))
        own, other = (ranked(s[asked], true[asked]) for s in (best, simple))
        halves.append({"confirmed": int(true[asked].sum()), "ours": own, "prototype": other})
    return {
        "confirmed": int(true.sum()),
        **ranked(score, true),
        "flagged": int(flagged.sum()),
        "precision": float(true[flagged].mean()),
        "recall": float(flagged[true].mean()),
        "prototype": ranked(simple, true),
        "halves, with weights chosen on the other": halves,
    }


def prototype(images: np.ndarray, n_train: int, cosine: np.ndarray) -> np.ndarray:
    """Return the sum of cosine and of the correlation of grey images, shifted by up to 2 pixels.

    The forty lines that one writes first: five candidates by cosine of the features.
    """
    grey = images.astype(np.float32).mean(axis=3)
    best = np.zeros(len(cosine))
    for row, similar in enumerate(cosine):
        for candidate in np.argsort(-similar)[:5]:
            one, other = grey[n_train + row], grey[candidate]
            middle = one[2:-2, 2:-2].ravel()
            shifts = [other[y : y + 28, x : x + 28].ravel() for y in range(5) for x in range(5)]
            same = max(np.corrcoef(middle, shifted)[0, 1] for shifted in shifts)
            best[row] = max(best[row], similar[candidate] + same)
    return best


def ranked(score: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """Return how many of the true rows are among the first."""
    order = np.argsort(-score, kind="stable")
    return {
        "found among as many": int(true[order[: true.sum()]].sum()),
        "found among twice as many": int(true[order[: 2 * true.sum()]].sum()),
        "average precision": float(average_precision_score(true, score)),
    }


def own_folds(data: Path, weights: str, folder: Path) -> dict[str, Any]:
    """Count STL-10's near-duplicates, those its folds divide, and what keeping them out changes."""
    source = open_source("stl10", "train", DatasetOptions(data))
    (store,) = embed([source], folder, weights=weights)
    audit = Audit([store])
    pairs = audit.findings[audit.findings.issue == "near-duplicate"]
    listed = {tuple(sorted(pair)) for pair in zip(pairs.id, pairs.partner, strict=True)}
    folds = np.zeros((len(store.folds), len(store)), bool)
    for fold, rows in zip(folds, store.folds, strict=True):
        fold[rows] = True
    number = {name: row for row, name in enumerate(store.ids)}
    a, b = (np.array([number[name] for name in column]) for column in (pairs.id, pairs.partner))
    X, y = np.asarray(store.features(), np.float32), np.asarray(store.labels)
    usual, without, copied = [], [], []
    for fold in folds:
        probe = make_pipeline(StandardScaler(), LinearSVC(C=1e-4, dual=True)).fit(X[fold], y[fold])
        right = probe.predict(X) == y
        twins = np.zeros(len(y), bool)
        twins[a[fold[b]]] = twins[b[fold[a]]] = True
        usual.append(right[~fold].mean())
        without.append(right[~fold & ~twins].mean())
        copied.append(int((twins & ~fold).sum()))
    return {
        "pairs": len(listed),
        "divided by folds": audit.summary["duplicates"]["divided_by_folds"],
        "listed": sorted(listed)[:60],
        "test images of a fold with a twin in training": float(np.mean(copied)),
        "accuracy": float(np.mean(usual)),
        "accuracy without these": float(np.mean(without)),
    }


def recall_of_search(n: int = 60_000, width: int = 256) -> dict[str, Any]:
    """Compare approximate neighbours with exact ones, on rows with clusters."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n // 20, width)).repeat(20, axis=0) + rng.normal(size=(n, width))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    every, found = np.arange(n), {}
    for name, most in (("exact", n), ("approximate", duplicates.EXACT_ROWS)):
        with mock.patch.object(duplicates, "EXACT_ROWS", most):
            began = time.perf_counter()
            found[name] = duplicates.nearest(rows, every, every)[0]
            found[f"{name} seconds"] = round(time.perf_counter() - began, 1)
    same = [np.isin(a, b).mean() for a, b in zip(found["exact"], found["approximate"], strict=True)]
    seconds = {name: value for name, value in found.items() if "seconds" in name}
    return {"rows": n, "features": width, "missed": 1 - float(np.mean(same)), **seconds}


def wrong_labels(data: Path, weights: str, folder: Path) -> list[dict[str, Any]]:
    """Rank images of CIFAR-10 that people labelled, by the doubt about what they said."""
    images = np.load(data / "cifar10" / "train_first4000.npz")["images"]
    said = np.load(data / "cifar10" / "first4000_human_labels.npz")
    right = said["clean_label"].astype(int)
    ids = tuple(map(str, range(len(images))))
    source = ArraySource(Identity("people", "train", tuple("0123456789"), ids, right), images)
    (store,) = embed([source], folder, weights=weights, image_size=64)
    X, rows = np.asarray(store.features(), np.float32), []
    people = ("random_label1", "random_label2", "random_label3", "aggre_label", "worse_label")
    given = {name: said[name].astype(int) for name in (*people, "clean_label")}
    rng = np.random.default_rng(0)
    for share in (0.05, 0.2):
        drawn = rng.random(len(right)) < share
        other = (right + rng.integers(1, 10, len(right))) % 10
        given[f"{share:.0%} at random"] = np.where(drawn, other, right)
    for name, y in given.items():
        wrong = y != right
        probabilities, shrinkage = out_of_sample(X, y)
        found = doubts(probabilities, y)
        row = {"labels": name, "wrong": float(wrong.mean()), "shrinkage": shrinkage}
        share = found.share()
        row["estimated"] = [share["value"], share["low"], share["high"]]
        row |= ranking(1 - found.confidence, wrong) if wrong.any() else {}
        if num_label_issues is not None and wrong.any():
            for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
                quality = get_label_quality_scores(y, probabilities, method=method)
                row[f"cleanlab {method}"] = ranking(-quality, wrong)
            row["cleanlab estimated"] = num_label_issues(y, probabilities) / len(y)
        rows.append(row)
    return rows


def ranking(score: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    """Return how well a score ranks, with intervals from 500 resamples of the images."""
    order = np.argsort(-score, kind="stable")
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(wrong), size=(500, len(wrong)))
    values = [roc_auc_score(wrong[rows], score[rows]) for rows in drawn]
    low, high = np.quantile(values, [0.025, 0.975])
    return {
        "auroc": [float(roc_auc_score(wrong, score)), float(low), float(high)],
        "precision@100": float(wrong[order[:100]].mean()),
        "precision@200": float(wrong[order[:200]].mean()),
    }


def _saved(image: np.ndarray, **options: Any) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, **options)
    return np.array(Image.open(stream).convert("RGB"))


def _cropped(image: np.ndarray) -> np.ndarray:
    height, width = (round(0.05 * side / 2) for side in image.shape[:2])
    return image[height:-height, width:-width]


def _halved(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.array(Image.fromarray(image).resize((width // 2, height // 2)))


WAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copied": lambda image: image,
    "PNG": lambda image: _saved(image, format="PNG"),
    "JPEG at quality 75": lambda image: _saved(image, format="JPEG", quality=75),
    "half the size": _halved,
    "5 % cropped": _cropped,
    "mirrored": lambda image: image[:, ::-1],
}


def planted_leaks(data: Path, weights: str, folder: Path) -> list[dict[str, Any]]:
    """Plant changed copies of test photos in the training split and count which are found."""
    files = sorted((data / "imagenette-val500").rglob("*.*"))
    files = [file for file in files if file.suffix.lower() in (".jpeg", ".jpg", ".png")]
    names = sorted({file.parent.name for file in files})
    rng = np.random.default_rng(0)
    files = [files[i] for i in rng.permutation(len(files))]
    images = [read_image(file) for file in files]
    labels = [names.index(file.parent.name) for file in files]
    half = len(images) // 2
    rows = []
    for name, way in [("nothing", None), *WAYS.items()]:
        copies = [] if way is None else [way(image) for image in images[:PLANTED]]
        train = Pictures(
            "train", images[half:] + copies, labels[half:] + labels[: len(copies)], len(names)
        )
        test = Pictures("test", images[:half], labels[:half], len(names))
        stores = embed([train, test], folder, weights=weights)
        found = Audit(stores).findings
        identical = found[(found.issue == "identical") & (found.split == "train")]
        near = found[(found.issue == "near-duplicate") & (found.partner_split == "test")]
        flagged = {*identical.partner, *near.partner}
        planted = {f"test/{row}" for row in range(len(copies))}
        rows.append(
            {
                "planted": name,
                "copies": len(planted),
                "identical": len(planted & set(identical.partner)),
                "found": len(planted & flagged),
                "others": half - len(planted),
                "false alarms": len(flagged - planted),
            }
        )
        print(rows[-1], flush=True)
    return rows


def always_on(data: Path, weights: str) -> dict[str, Any]:
    """Time what extraction does for each photo so that leaks are known, and the whole of it."""
    files = sorted((data / "imagenette-val500").rglob("*.JPEG"))[:256]
    images = [read_image(file) for file in files]
    seconds = []
    for _ in range(5):
        began = time.process_time()
        for image in images:
            look_at(image)
        seconds.append((time.process_time() - began) / len(images))
    source = Pictures("val", images, [0] * len(images), 1)
    backbone = load_backbone("resnet50", weights, "cpu")
    with tempfile.TemporaryDirectory() as name:
        extract_source(source, backbone, Path(name) / "warm.h5")
        began, cpu = time.perf_counter(), time.process_time()
        extract_source(source, backbone, Path(name) / "timed.h5")
        whole = (time.process_time() - cpu) / len(images)
        rate = len(images) / (time.perf_counter() - began)
    return {
        "photos": len(images),
        "cpu_ms_a_photo": round(1000 * min(seconds), 3),
        "resnet50_extraction_cpu_ms_a_photo": round(1000 * whole, 1),
        "images_per_s": round(rate, 1),
        "share": round(min(seconds) / whole, 5),
    }


def audited(paths: list[Path]) -> dict[str, Any]:
    """Audit stores; run in a process of its own, whose peak of memory is the audit's."""
    began = time.perf_counter()
    Audit([FeatureStore(path) for path in paths])
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": round(seconds, 1), "peak_gib": round(peak / 2**30, 2)}


def duration(folder: Path, n: int, width: int, classes: int = 10) -> dict[str, Any]:
    """Time the audit of synthetic features and noise for thumbnails."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, width)).astype(np.float32)
    paths = []
    for split, rows in (("train", n * 5 // 6), ("test", n // 6)):
        labels = rng.integers(classes, size=rows)
        dataset = {"name": "noise", "split": split, "images": rows, "fingerprint": split}
        manifest = {
            "dataset": dataset,
            "backbone": {"model": "noise"},
            "layers": ["x"],
            "dtype": "float32",
        }
        ids = tuple(f"{split}/{row}" for row in range(rows))
        names = tuple(map(str, range(classes)))
        content = StoreContent(ids, labels, names, {"x": (width,)}, "float32", manifest, looks=True)
        paths.append(folder / f"noise-{split}-{n}-{classes}.h5")
        with StoreWriter(paths[-1], content) as writer:
            for first in range(0, rows, 20_000):
                block = labels[first : first + 20_000]
                features = rng.normal(size=(len(block), width)).astype(np.float32) * 3
                looks = {
                    name: rng.integers(1, 250, size=(len(block), *shape)).astype(kind)
                    for name, (kind, shape) in LOOKS.items()
                }
                writer.append({"x": features + centres[block]}, {}, looks)
            writer.seal({"created": "", "images_per_s": 1.0, "seconds": 1.0})
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        measured = pool.submit(audited, paths).result()
    return {"images": n, "features": width, "classes": classes, **measured}


def main() -> None:
    """Measure what is asked for, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--only", default="pairs,labels,leaks,folds,search,time,million,always")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "audit.json")
    given = parser.parse_args()
    here = given.shared / "weights" / "resnet18-imagenet-pqf.safetensors"
    weights = given.weights or (str(here) if here.is_file() else "DEFAULT")
    deeper = here.with_name("resnet50-imagenet-pqf.safetensors")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "time" in given.only:
            found["time"] = [duration(folder, 60_000, 512, classes) for classes in (10, 1000)]
            print(found["time"], flush=True)
        if "always" in given.only:
            named = str(deeper) if deeper.is_file() else "DEFAULT"
            found["always on"] = always_on(given.shared / "data", named)
            print(found["always on"], flush=True)
        if "search" in given.only:
            found["search"] = recall_of_search()
            print(found["search"], flush=True)
        if "million" in given.only:
            found["million"] = duration(folder, 1_000_000, 512)
            print(found["million"], flush=True)
        for part, work in (
            ("pairs", near_duplicates),
            ("labels", wrong_labels),
            ("leaks", planted_leaks),
            ("folds", own_folds),
        ):
            if part in given.only:
                found[part] = work(given.shared / "data", weights, folder)
                print(json.dumps(found[part], indent=1), flush=True)
    if given.out.is_file():
        found = {**json.loads(given.out.read_text()), **found}
    given.out.write_text(json.dumps({**found, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
