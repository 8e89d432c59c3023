"""What a run would do: which tasks are done, and what the others are likely to cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from featpipe import fingerprint
from featpipe.backbones import MODELS
from featpipe.errors import FeatpipeError
from featpipe.pipeline.task import Task, gives_result
from featpipe.pipeline.worker import bind
from featpipe.evaluation.result import Result, scan_results
from featpipe.steps.old import Context, EvaluationStep, ExtractStep, FinetuneStep
from featpipe.store import FeatureStore, scan_stores

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Forecast:
    """What is known about a task before it runs.

    Attributes
    ----------
    task : Task
    done : bool
    why : str
        Why it is done or still to do.
    key : str
        First letters of the fingerprint that names its files; empty where that is not known yet.
    paths : tuple of str
        Files of a task that is done.
    seconds, n_bytes : float or None
        What it is likely to take; ``None`` where nothing alike has run in this workspace.
    basis : str
        What the time is estimated from.
    """

    task: Task
    done: bool
    why: str
    key: str = ""
    paths: tuple[str, ...] = ()
    seconds: float | None = None
    n_bytes: float | None = None
    basis: str = ""

    def row(self) -> dict[str, Any]:
        """Return a row of the table that ``--dry-run`` shows."""
        if self.done:
            time = disk = "–"
        else:
            time = UNKNOWN if self.seconds is None else f"{_duration(self.seconds)} {self.basis}"
            disk = UNKNOWN if self.n_bytes is None else f"{self.n_bytes / 1e6:.1f} MB"
        state = "done" if self.done else "to do"
        row = {"task": self.task.name, "key": self.key, "state": state, "why": self.why}
        return {**row, "time": time.strip(), "disk": disk}


def forecast(tasks: Sequence[Task], context: Context) -> list[Forecast]:
    """Look at the disk and say of each task whether it is done, why, and what it will cost.

    Nothing is downloaded and torch is not imported.
    """
    book = _Records(context)
    known: dict[str, Forecast] = {}
    for task in tasks:
        try:
            known[task.name] = _look(task, known, book, context)
        except FeatpipeError as error:
            known[task.name] = Forecast(task, False, error.what)
    return list(known.values())


def expected_seconds(tasks: Sequence[Task], context: Context) -> dict[str, float]:
    """Return how long tasks are likely to take, by name, from the results of earlier runs only."""
    book = _Records(context)
    costs = {task.name: book.cost_of(task) for task in tasks if gives_result(task.step)}
    return {name: cost[0] for name, cost in costs.items() if cost is not None}


def _look(task: Task, known: Mapping[str, Forecast], book: _Records, context: Context) -> Forecast:
    if isinstance(task.step, ExtractStep):
        return _look_at_extraction(task, task.step, book, context)
    waiting = [name for name in task.needs if not known[name].done]
    if not gives_result(task.step):
        return Forecast(task, False, "written anew each time")
    seconds, n_bytes, basis = book.cost_of(task) or (None, None, "")
    to_do = Forecast(task, False, "", "", (), seconds, n_bytes, basis)
    if waiting:
        return dataclasses.replace(to_do, why=f"after {', '.join(waiting)}")
    if isinstance(task.step, FinetuneStep):
        key, path = _existing_training(task.step, book, context)
    else:
        needed = [known[name].paths for name in task.needs]
        key, path = _existing(bind(task.step, needed), context)
    if path is None:
        return dataclasses.replace(to_do, why="no such result yet", key=key)
    return Forecast(task, True, "result is there", key, (path,))


def _existing(step: Any, context: Context) -> tuple[str, str | None]:
    """Return the key of the result of a step, and its file where it exists."""
    assert isinstance(step, EvaluationStep)
    from featpipe.evaluate.run import result_name, up_to_date  # noqa: PLC0415 - brings scikit-learn
    from featpipe.evaluation.protocol import select_stores  # noqa: PLC0415

    name = result_name(step, *select_stores(step, context))
    path = context.workspace.results / f"{name}.json"
    there = up_to_date(step, path, context)
    return name.rpartition("-")[2], str(path) if there else None


def _existing_training(
    step: FinetuneStep, book: _Records, context: Context
) -> tuple[str, str | None]:
    """Return key and file of a result with the same settings on the same images.

    The key itself needs the network and therefore torch; a plan must not take that long.
    """
    from featpipe.evaluation.assemble import complete_result  # noqa: PLC0415 - brings scikit-learn
    from featpipe.extract.engine import dataset_identity  # noqa: PLC0415 - brings h5py
    from featpipe.finetune.images import open_images  # noqa: PLC0415

    images = [dataset_identity(s) for s in open_images(step, context, download=False)]
    for result in book.results:
        same_images = all(store["manifest"]["dataset"] in images for store in result.stores)
        same = same_images and _numbers(result.settings) == _numbers(step.settings())
        if same and result.method == step.kind and not step.force:
            assert result.path is not None
            model = context.workspace.models / result.files["model"]
            there = complete_result(result.path, model)
            return result.key[:8], str(result.path) if there else None
    return "", None


def _numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    no_numbers = ("title", "force", "data", "download", "workers")
    return {key: settings[key] for key in settings if key not in no_numbers}


def _look_at_extraction(
    task: Task, step: ExtractStep, book: _Records, context: Context
) -> Forecast:
    from featpipe.extract.command import look_ahead  # noqa: PLC0415 - brings h5py

    splits = look_ahead(step, context)
    key = fingerprint.of_mapping([split.identity for split in splits])[:8]
    stores = [split.store for split in splits]
    if all(stores):
        paths = tuple(str(store.path) for store in stores if store)
        return Forecast(task, True, "stores are there", key, paths)
    missing = [split for split in splits if split.store is None]
    images = sum(split.images for split in missing)
    names = ", ".join(f"{split.images} of {split.name}" for split in missing)
    begun = "; continues an unfinished store" if any(s.unfinished for s in missing) else ""
    speed = book.speed_of(step)
    if speed is None:
        return Forecast(task, False, f"{names} to embed{begun}", key)
    per_s, bytes_per_image = speed
    return Forecast(
        task,
        False,
        f"{names} to embed{begun}",
        key,
        seconds=images / per_s,
        n_bytes=images * bytes_per_image,
        basis=f"(at {per_s:g} images/s, as before)",
    )


@dataclass
class _Records:
    """What earlier runs in this workspace took."""

    context: Context

    @cached_property
    def stores(self) -> list[FeatureStore]:
        return scan_stores(self.context.workspace.features)[0]

    @cached_property
    def results(self) -> list[Result]:
        return scan_results(self.context.workspace.results)[0]

    def speed_of(self, step: ExtractStep) -> tuple[float, float] | None:
        """Return images per second and bytes per image of the last like extraction."""
        asked = {
            "layers": list(step.layer or ()),
            "image_size": step.image_size,
            "model": MODELS.entry(step.model).name,
            "dtype": step.dtype,
        }
        alike = [
            store
            for store in self.stores
            if asked.items() <= store.run.get("request", {}).items() and len(store)
        ]
        if not alike:
            return None
        last = max(alike, key=lambda store: store.run["created"])
        return last.run["images_per_s"], last.n_bytes / len(last)

    def cost_of(self, task: Task) -> tuple[float, float | None, str] | None:
        """Return seconds and bytes of the last result of this method, and where it is from."""
        step = task.step
        model = getattr(step, "model", None)
        alike = [
            result
            for result in self.results
            if result.method == step.kind
            and (step.kind != "finetune" or result.settings["model"] == model)
        ]
        here = [r for r in alike if r.dataset["name"] == getattr(step, "dataset", None)]
        if not (here or alike):
            return None
        last = max(here or alike, key=lambda result: result.created)
        seconds = last.cost.get("train_seconds", 0.0) + last.cost.get("predict_seconds", 0.0)
        basis = f"as the last one on {last.dataset['name']}"
        if isinstance(step, FinetuneStep):
            seconds *= step.epochs / last.settings["epochs"]
            basis += ", by epochs"
        return seconds, last.cost.get("model_bytes"), f"({basis})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
