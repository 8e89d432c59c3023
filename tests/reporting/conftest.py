"""One small world of results for all tests of reports; making it takes a few seconds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from featpipe.datasets import short_name
from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.datasets.source import ImageSource
from featpipe.evaluation.result import Result
from featpipe.probes.base import Evaluation
from featpipe.probes.logistic import Logistic
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.neighbours import Knn
from featpipe.probes.svm import Svm
from featpipe.reporting.data import ReportData
from featpipe.reporting.page import build_report, write_index
from featpipe.reporting.step import Report
from featpipe.steps import Context
from featpipe.store import FeatureStore, StoreContent, StoreWriter
from featpipe.workspace import Workspace
from tests.evaluation.methods import context, evaluate
from tests.images import pictures
from tests.looks import seen, vectors

CLASSES = ("airplane", "bird", "cat", "deer")
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "</script>", "{{ 7*7 }}")


@dataclass(frozen=True)
class Plan:
    """How large the made-up dataset is, and what its classes are called."""

    classes: tuple[str, ...] = CLASSES
    n_train: int = 120
    n_test: int = 200
    side: int = 40
    noise: float = 2.2
    dims: int = 24


def draw_images(labels: np.ndarray, side: int, seed: int) -> np.ndarray:
    """Draw one shape per image whose colour and corners follow the class."""
    rng = np.random.default_rng(seed)
    images = np.empty((len(labels), side, side, 3), dtype=np.uint8)
    for row, label in enumerate(labels):
        ground = tuple(int(v) for v in rng.integers(150, 235, 3))
        picture = Image.new("RGB", (side, side), ground)
        turn = np.random.default_rng(int(label)).integers(0, 200, 3)
        centre, reach = rng.uniform(0.4, 0.6, 2) * side, rng.uniform(0.2, 0.38) * side
        ImageDraw.Draw(picture).regular_polygon(
            (float(centre[0]), float(centre[1]), float(reach)),
            3 + int(label) % 6,
            rotation=int(rng.integers(360)),
            fill=tuple(int(v) for v in turn),
        )
        images[row] = np.asarray(picture)
    return images


def write_dataset(path: Path, plan: Plan) -> None:
    """Write an npz dataset with the splits train and test."""
    n = plan.n_train + plan.n_test
    labels = np.arange(n) % len(plan.classes)
    np.savez(
        path,
        images=draw_images(labels, plan.side, seed=1),
        labels=labels,
        classes=np.array(plan.classes),
        split=np.array(["train"] * plan.n_train + ["test"] * plan.n_test),
    )


def write_store(folder: Path, source: ImageSource, dataset: str, plan: Plan) -> FeatureStore:
    """Write the store of one split: clusters, as far apart as the plan says."""
    rng = np.random.default_rng([3, len(source)])
    centres = np.random.default_rng(7).normal(size=(len(plan.classes), plan.dims))
    features = centres[source.labels] + plan.noise * rng.normal(size=(len(source), plan.dims))
    manifest = {
        "dataset": {
            "name": short_name(source.name),
            "split": source.split,
            "images": len(source),
            "fingerprint": source.fingerprint,
        },
        "backbone": {"model": "toynet", "weights": {"name": "none", "sha256": "0" * 64}},
        "layers": ["avgpool"],
        "dtype": "float32",
        "plan": repr(plan),
    }
    content = StoreContent(
        ids=list(source.ids),
        labels=source.labels,
        classes=source.classes,
        shapes={"avgpool": (plan.dims,)},
        dtype="float32",
        manifest=manifest,
        folds=tuple(np.array_split(np.arange(plan.n_train), 2)) if source.split == "train" else (),
    )
    run = {
        "created": "2024-05-01T10:00:00+00:00",
        "seconds": 3.25,
        "images_per_s": 61.5,
        "command": f"featpipe extract --model toynet --dataset {dataset}",
        "source": {"dataset": dataset},
    }
    with StoreWriter(folder / f"{source.split}.h5", content) as writer:
        writer.append({"avgpool": features.astype(np.float32)})
        return writer.seal(run)


@dataclass(frozen=True)
class World:
    """A workspace with a dataset, stores and results."""

    workspace: Workspace
    dataset: Path
    stores: tuple[FeatureStore, FeatureStore]

    def evaluate(self, step: Evaluation, name: str) -> Result:
        """Evaluate a method for real and save its result with a fixed date."""
        path = self.workspace.results / f"{name}.json"
        context = Context(self.workspace, jobs=1, command=f"featpipe {step.name}")
        result = evaluate(step, *self.stores, context, path)
        result.created = "2024-05-02T09:30:00+00:00"
        result.save(path)
        return result

    def report(self, results: list[Result], out: Path, **choices: Any) -> Path:
        """Write a page in this workspace."""
        return build_report(results, out, Report(**choices), Context(self.workspace))


def make_world(root: Path, plan: Plan = Plan()) -> World:
    """Make a workspace with a dataset of real images and the stores of both splits."""
    workspace = Workspace(root)
    dataset = root / "toy.npz"
    root.mkdir(parents=True, exist_ok=True)
    write_dataset(dataset, plan)
    workspace.features.mkdir(parents=True, exist_ok=True)
    spec = f"npz:{dataset}"
    options = DatasetOptions(raw=workspace.raw)
    train, test = (
        write_store(workspace.features, open_source(spec, split, options), spec, plan)
        for split in ("train", "test")
    )
    return World(workspace, dataset, (train, test))


def some_results(world: World) -> list[Result]:
    """Evaluate four methods, a cross-validated and a low-shot one among them."""
    steps = {
        "svm": Svm(save_model=True),
        "logistic": Logistic(),
        "knn": Knn(k=(1, 5, 10)),
        "centroid": Centroid(protocol="folds"),
        "few": Svm(train_per_class=(1, 2, 5, 10), repeats=3, c=(0.01,), title="SVM, few labels"),
    }
    return [world.evaluate(step, name) for name, step in steps.items()]


def add_training(result: Result, epochs: int = 8) -> Result:
    """Return a copy of a result that looks like a fine-tuned head, saved under another name."""
    assert result.path is not None
    history = [
        {
            "epoch": epoch,
            "train_loss": 1.2 * 0.8**epoch,
            "valid_loss": 1.25 * 0.83**epoch + 0.02 * epoch,
            "train_accuracy": 1 - 0.5 * 0.75**epoch,
            "valid_accuracy": 0.95 - 0.5 * 0.78**epoch,
            "lr": 0.01 * 0.5 ** (epoch // 3),
            "seconds": 1.5,
            "images_per_s": 812.0,
        }
        for epoch in range(1, epochs + 1)
    ]
    flow = [
        [
            {"layer": layer, "mean": 0.1 * 0.9**epoch / (k + 1), "max": 1.0}
            for k, layer in enumerate(("fc1", "fc2", "classifier"))
        ]
        for epoch in range(1, epochs + 1)
    ]
    trained = replace(result, method="finetune", title="Fine-tuned head", key=f"x{result.key}")
    trained.extra = {**result.extra, "history": history, "gradient_flow": flow}
    trained.files = dict(result.files)
    trained.save(result.path.with_name("finetune.json"))
    return trained


class Page(HTMLParser):
    """A page's elements, text outside scripts and styles, and the data of charts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.charts: list[dict[str, Any]] = []
        self._inside = ""
        self._json = False
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        self._json = dict(attrs).get("type") == "application/json"

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and self._json:
            self.charts.append(json.loads(data))
        elif self._inside not in ("script", "style"):
            self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@dataclass(frozen=True)
class Made:
    """A world with its results and a report of them."""

    world: World
    results: list[Result]
    page: Path

    def again(self, out: Path, results: list[Result] | None = None, **choices: Any) -> Path:
        """Build another report in the same world."""
        return self.world.report(results or self.results, out, **choices)

    def data(self, results: list[Result] | None = None, **choices: Any) -> ReportData:
        """Return what a page of these results is made from."""
        context = Context(self.world.workspace)
        return ReportData.load(results or self.results, Report(**choices), context)


def changed(made: Made, **store: object) -> Result:
    """Return the first result as if the store of its test rows were described otherwise."""
    result = Result.load(made.results[0].path)  # type: ignore[arg-type]
    result.stores[-1].update(store)
    return result


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Six methods on a dataset of four classes, with training curves and a low-shot curve."""
    world = make_world(tmp_path_factory.mktemp("world"))
    results = some_results(world)
    results.append(add_training(results[0]))
    page = world.report(results, world.workspace.reports / "toy")
    write_index(world.workspace.reports)
    return Made(world, results, page)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A dataset whose class names, and a method whose title, try to break out of the page."""
    plan = Plan(classes=HOSTILE, n_train=40, n_test=40)
    world = make_world(tmp_path_factory.mktemp("hostile"), plan)
    results = some_results(world)[:2]
    results[0].title = "</title></script><script>alert(3)</script>"
    results[0].notes.append("<b onclick=alert(4)>a note</b>")
    results[0].save(results[0].path)  # type: ignore[arg-type]
    page = world.report(results, world.workspace.reports / "hostile")
    return Made(world, results, page)


@pytest.fixture
def leaky(tmp_path: Path) -> tuple[Context, list[FeatureStore], list[Result]]:
    """Return a context, two stores with five leaks, and two results."""
    where = context(tmp_path)
    images, tests = list(pictures(60, 32)), list(pictures(30, 32, seed=1))
    features, tested = vectors(60, 0), vectors(30, 1)
    for row in range(5):
        tests[row], tested[row] = images[row], features[row]
    tests[6], tested[6] = images[6][:, ::-1], features[6]
    stores = [
        seen(tmp_path / "a.h5", images, arrays={"avgpool": features}, dims=40),
        seen(tmp_path / "b.h5", tests, arrays={"avgpool": tested}, dims=40, split="test"),
    ]
    results = [
        evaluate(step, *stores, where, where.workspace.results / f"{step.name}.json")
        for step in (Centroid(), Logistic())
    ]
    return where, stores, results
