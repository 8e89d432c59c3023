"""The command `featpipe finetune`: activations once, epochs on the rest, one honest test."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from featpipe import fingerprint
from featpipe.evaluation.assemble import SplitPredictions
from featpipe.evaluation.assemble import MethodOutput
from featpipe.evaluation.protocol import RowSet, Split, make_splits
from featpipe.evaluation.assemble import build_result, complete_result, outcome_of, save_result
from featpipe.evaluation.fitting import check_rows
from featpipe.finetune.augment import Augmentation, Canvas
from featpipe.finetune.classifier import HeadClassifier
from featpipe.finetune.losses import HeadLoss
from featpipe.finetune.material import Material
from featpipe.finetune.module import NetworkFactory, count_parameters
from featpipe.finetune.rows import ActivationDataset, StoreRows
from featpipe.finetune.saved import save_head
from featpipe.finetune.settings import (
    make_estimator,
    make_factory,
    trunk_request,
    unfreeze_of,
)
from featpipe.finetune.trunk import Trunk
from featpipe.naming import slug
from featpipe.provenance import package_version
from featpipe.evaluation.result import Result
from featpipe.steps.old import Context, FinetuneStep, Outcome

FINETUNE_VERSION = 2  # raised when the same settings would give other numbers

_NOT_IN_KEY = (
    *("dataset", "model", "weights", "data", "download", "device", "title", "force"),
    *("split", "classes", "limit", "split_seed", "image_size", "fit", "dtype", "norm"),
    "workers",
)


def run_finetune(step: FinetuneStep, context: Context) -> Outcome:
    """Train and test what a step says, unless the same result exists already."""
    material = Material(step, context)
    trunk = material.trunk
    # Both refuse what is wrong or not installed, before anything is computed.
    Augmentation(step.augment or (), Canvas.of(trunk.preprocessing))
    HeadLoss(step.loss, n_classes=2, n_features=2)
    job = _Job(step, context, material)
    name = f"{slug(step.dataset)}-{trunk.name}-finetune-{job.key[:8]}"
    path = context.workspace.results / f"{name}.json"
    existing = None if step.force else complete_result(path, job.model_path(path))
    if existing is not None:
        return outcome_of(job.titled(existing), "up to date")
    return outcome_of(job.run(path), "done")


@dataclass(frozen=True, eq=False)
class _Trained:
    """One trained and tested head."""

    tested: SplitPredictions
    estimator: HeadClassifier
    seconds: dict[str, float]


@dataclass
class _Job:
    """One run of the command."""

    step: FinetuneStep
    context: Context
    material: Material

    @cached_property
    def key(self) -> str:
        """Fingerprint of everything that the numbers follow from."""
        trunk = self.material.trunk
        settings = {k: v for k, v in self.step.settings().items() if k not in _NOT_IN_KEY}
        return fingerprint.of_mapping(
            {
                "finetune": FINETUNE_VERSION,
                "settings": settings,
                "trunk": trunk.description,
                "device": trunk.device.type,
                "stores": self.material.fingerprints,
                "torch": package_version("torch"),
            }
        )

    def run(self, path: Path) -> Result:
        """Train and test on every split of the protocol."""
        step, material = self.step, self.material
        train, *tests = material.stores()
        test = tests[0] if tests else None
        protocol, splits = make_splits(step.protocol, train, test, step.seed)
        for split in splits:
            check_rows(split)
        factory = make_factory(
            step,
            material.trunk,
            material.cut,
            len(train.classes),
            from_store=material.views is not None,
        )
        trainings = [
            self._train(split, factory, self._run_name(path, number))
            for number, split in enumerate(splits)
        ]
        evaluated = self._evaluated(trainings, factory)
        result, table = build_result(step, self.key, protocol, evaluated, self.context)
        model = self.model_path(path)
        result.cost["model_bytes"] = save_head(
            model,
            trainings[0].estimator.module_,
            factory,
            trunk_request(step),
            {
                "classes": list(train.classes),
                "title": result.title,
                "unfreeze": unfreeze_of(step, self.material.trunk),
            },
        )
        result.files["model"] = model.name
        save_result(result, path, table)
        for number in range(len(splits)):
            for checkpoint in self._run_name(path, number).paths:
                checkpoint.unlink(missing_ok=True)
        return result

    def model_path(self, path: Path) -> Path:
        """Return where the trained part of the network lies."""
        return self.context.workspace.models / f"{path.stem}.safetensors"

    def titled(self, result: Result) -> Result:
        """Give an existing result the title asked for; no training is repeated for a name."""
        if result.settings["title"] != self.step.title:
            result.settings["title"] = self.step.title
            result.title = self.step.title or self._title()
            assert result.path is not None
            result.save(result.path)
        return result

    def _run_name(self, path: Path, number: int) -> _RunName:
        return _RunName(self.context.workspace.models / path.stem, self.key, number)

    def _train(self, split: Split, factory: NetworkFactory, run: _RunName) -> _Trained:
        """Train on one split's training rows and predict its test rows once."""
        step = self.step
        estimator = make_estimator(
            step,
            factory,
            self.material.views,
            checkpoint=run.paths[0],
            run=f"{run.key} {run.number}",
            progress=self.context.progress,
            label=f"{self.material.trunk.name} · {split.name}",
        )
        train = dataset_of(split.train, estimator)
        estimator.fit(train, split.train.labels)
        lines, best = estimator.epochs_, estimator.best_epoch_
        flow = estimator.gradient_flow_
        spent = _seconds(lines)
        if step.refit:
            again = {"validation": 0.0, "stop_after": best, "patience": None}
            again |= {"probe_c": estimator.probe_c_}
            files = {"checkpoint": run.paths[1], "run": f"{run.key} {run.number} refit {best}"}
            estimator = clone(estimator).set_params(**again, **files)
            estimator.fit(train, split.train.labels)
            spent += _seconds(estimator.epochs_)
        began = time.perf_counter()
        scores: NDArray[np.float32] = estimator.predict_proba(dataset_of(split.test, estimator))
        seconds = {"fit": spent, "predict": time.perf_counter() - began}
        start = {} if estimator.probe_c_ is None else {"probe c": estimator.probe_c_}
        by = "validation accuracy" if step.validation else "the last one"
        facts = {
            "chosen": {"epoch": best, "by": by, **start},
            "seconds": seconds,
            "history": lines,
            "gradient_flow": flow,
        }
        tested = SplitPredictions(split, scores.argmax(axis=1), scores, probabilities=True, facts=facts)
        return _Trained(tested, estimator, seconds)

    def _evaluated(self, trainings: list[_Trained], factory: NetworkFactory) -> MethodOutput:
        counts = count_parameters(factory())
        if self.material.views is not None:  # the stages in front of the store are frozen too
            counts["frozen"] += sum(
                p.numel()
                for name in self.material.cut.frozen
                for p in _parameters(self.material.trunk, name)
            )
        cost = {
            "train_seconds": sum(one.seconds["fit"] for one in trainings),
            "predict_seconds": sum(one.seconds["predict"] for one in trainings),
            "parameters_trained": counts["trained"],
            "parameters_frozen": counts["frozen"],
            "running_statistics": counts["running_statistics"],
        }
        first = trainings[0].tested.facts
        extra = {"history": first["history"], "network": self.material.trunk.description}
        if self.step.gradient_flow:
            extra["gradient_flow"] = first["gradient_flow"]
        return MethodOutput(self._title(), [one.tested for one in trainings], cost, [], extra)

    def _title(self) -> str:
        unfrozen = unfreeze_of(self.step, self.material.trunk)
        what = {
            "none": "new head",
            "fc": "new head",
            "all": "fine-tuned" if self.material.trunk.pretrained else "from scratch",
        }
        return f"{self.material.trunk.name} {what.get(unfrozen, f'{unfrozen} fine-tuned')}"


@dataclass(frozen=True)
class _RunName:
    """What tells one training from all others, and where its checkpoints lie."""

    stem: Path
    key: str
    number: int

    @property
    def paths(self) -> tuple[Path, Path]:
        """Checkpoint of the training, and of the one on all rows behind it."""
        name = f"{self.stem.name}.{self.number}"
        return (
            self.stem.with_name(f"{name}.checkpoint"),
            self.stem.with_name(f"{name}.refit.checkpoint"),
        )


def dataset_of(rows: RowSet, estimator: HeadClassifier) -> ActivationDataset:
    """Return rows of a store as batches for an estimator."""
    stored = rows.store.manifest["backbone"].get("views", {"count": 0})
    return ActivationDataset(
        StoreRows(rows.store.features(), rows.rows),
        rows.labels,
        views=stored["count"],
        augment=estimator.augment,
    )


def _seconds(epochs: list[dict[str, Any]]) -> float:
    """Return what epochs took, those before an interruption included."""
    return sum(float(epoch["seconds"]) for epoch in epochs)


def _parameters(trunk: Trunk, stage: str) -> Any:
    return trunk.stages.get_submodule(stage).parameters()
