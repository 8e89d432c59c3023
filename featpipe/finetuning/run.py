"""What `featpipe finetune` does: stores once, epochs on the rest, one honest test, one result.

A frozen stage gives the same activations in every epoch. They are written once into a sealed
store, and the epochs run on the rest of the network only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from featpipe.backbones import UNTRAINED, architecture_of, automatic, located
from featpipe.backbones.base import Embedder
from featpipe.backbones.runtime import Execution, choose_device
from featpipe.datasets import slug
from featpipe.datasets.dataset import SourceRequest, splits_of
from featpipe.datasets.source import ImageSource
from featpipe.errors import UsageError
from featpipe.evaluation.assemble import (
    MethodOutput,
    SplitPredictions,
    build_result,
    complete_result,
    outcome_of,
    renamed,
    save_result,
)
from featpipe.evaluation.fitting import check_rows
from featpipe.evaluation.protocol import RowSet, Split, make_splits, resolve
from featpipe.evaluation.result import Result
from featpipe.evaluation.screening import Screening
from featpipe.extraction.batches import ExtractOptions
from featpipe.extraction.engine import Extraction
from featpipe.finetuning.nets import Trunk, load_trunk, map_stages
from featpipe.finetuning.network import Cut, HeadedNetwork, cut_of
from featpipe.finetuning.rows import Augmentation, Prefix, PreparedImages, RowBatches
from featpipe.finetuning.saved import save_head
from featpipe.finetuning.step import OPTIMIZERS
from featpipe.finetuning.training import HeadClassifier
from featpipe.fingerprint import FileHashes
from featpipe.provenance import package_version
from featpipe.steps import LEFT_OUT, Context, Outcome
from featpipe.workspace import IMAGE_LAYER, one_at_a_time, remove_leftovers, user_path

if TYPE_CHECKING:
    from featpipe.finetuning.step import Finetune

_REFIT = ".refit.checkpoint"


@dataclass
class FinetuneData:
    """Network and images of one fine-tuning; each part is made when it is asked for."""

    step: Finetune
    context: Context

    @property
    def trunk_options(self) -> dict[str, Any]:
        """What :func:`load_trunk` is asked for, with which the network can be loaded again."""
        step, file = self.step, user_path(self.step.weights)
        return {
            "model": located(step.model),
            "weights": str(file.resolve()) if file.is_file() else step.weights,
            "norm": step.norm,
            "image_size": step.image_size,
            "fit": step.fit,
            "decode": step.decode,
            "device": step.device,
            "seed": step.seed,
        }

    @cached_property
    def trunk(self) -> Trunk:
        """The network below the head."""
        hashes = FileHashes(self.context.workspace.hashes)
        sizes = [source.size for source in self.sources]
        download = self.step.download
        return load_trunk(**self.trunk_options, sizes=sizes, hashes=hashes, download=download)

    @cached_property
    def automatic(self) -> dict[str, Any]:
        """What each option means that can be left to choose, given all the others."""
        trunk = self.trunk
        test_splits: list[Any] = self.splits[1:] or [None]
        meant: dict[str, Any] = {
            "device": choose_device().type,
            "unfreeze": "none" if trunk.pretrained else "all",
            "batch_norm": "keep" if trunk.pretrained else "update",
            "precision": "mixed" if trunk.device.type == "cuda" else "float32",
            "protocol": resolve("auto", test_splits[0])[0],
            "fit": trunk.preprocessing.as_dict()["fit"],
        }
        step = self.step
        chosen = automatic(step.model, step.weights, download=step.download)
        published = architecture_of(step.model, download=step.download).published
        meant["weights"] = chosen.weights if published else UNTRAINED
        meant["image_size"] = chosen.image_size
        return meant

    @cached_property
    def resolved(self) -> Finetune:
        """The step with what its automatic choices mean."""
        return self.step.resolved(self.automatic)

    @cached_property
    def cut(self) -> Cut:
        """Which stages learn; ``UsageError`` if stages of an untrained network would not."""
        unfreeze = str(self.resolved.unfreeze)
        cut = cut_of(self.trunk.stages, unfreeze)
        if not self.trunk.pretrained and (cut.frozen or cut.passed):
            raise UsageError(
                f"{self.trunk.name} is untrained: what stays frozen would stay random.",
                expected="--unfreeze all",
                got=f"--unfreeze {unfreeze}",
            )
        return cut

    @cached_property
    def augment(self) -> Augmentation | None:
        """What changes training images; amounts that are too much are refused."""
        specs = self.step.augment
        return Augmentation(specs, self.trunk.preprocessing) if specs else None

    @cached_property
    def embedder(self) -> Embedder:
        """What fills the stores: frozen stages, or nothing where images change or all learns."""
        if self.augment is not None or not self.cut.frozen:
            return PreparedImages(self.trunk)
        how = Execution(self.step.runtime, progress=self.context.progress)
        return Prefix(self.trunk, self.cut, how)

    @cached_property
    def splits(self) -> list[str]:
        """The split of the training rows and, where there is one, that of the test rows."""
        step = self.step
        options = SourceRequest.of(step).options(self.context, download=step.download)
        return step.chosen_splits(step.split or splits_of(step.dataset, options))

    @cached_property
    def sources(self) -> list[ImageSource]:
        """The images of these splits."""
        images = SourceRequest.of(self.step)
        return images.open_all(self.splits, self.context, download=self.step.download)

    @cached_property
    def extraction(self) -> Extraction:
        """The stores of all splits, found or made."""
        step, embedder = self.step, self.embedder
        return Extraction(
            SourceRequest.of(step),
            self.sources,
            self.context.workspace.activations / slug(step.dataset) / embedder.name,
            lambda: embedder,
            ExtractOptions(
                dtype="uint8" if embedder.default_layer == IMAGE_LAYER else step.dtype,
                on_error=step.on_error,
                workers=step.workers,
            ),
            self.context,
            record={"weights": self.trunk_options["weights"]},
        )

    @cached_property
    def key(self) -> str:
        """Fingerprint of everything that the numbers follow from; nothing is trained for it."""
        inputs = {
            "stores": [content.fingerprint for content in self.extraction.contents()],
            "network": self.trunk.description,  # image size and fit are part of it
            "device": self.trunk.device.type,
            "torch": package_version("torch"),
        }
        lists = self.step.row_lists()
        return self.resolved.key(inputs, image_size=None, fit="auto", **lists)

    @property
    def title(self) -> str:
        """Name of the method, unless the step has a title."""
        unfreeze = self.resolved.unfreeze
        whole = "fine-tuned" if self.trunk.pretrained else "from scratch"
        what = {"none": "new head", "all": whole}.get(str(unfreeze), f"{unfreeze} fine-tuned")
        return f"{self.trunk.name} {what}"

    def check_rows(self) -> None:
        """Refuse rows that cannot be trained on before anything is embedded."""
        # Stores as they will be if every image can be read.
        stores: list[Any] = [
            SimpleNamespace(
                **vars(content),
                usable=np.flatnonzero(content.labels >= 0),
                path=source.name,
                digests=None,
                skipped={},
            )
            for source, content in zip(
                self.extraction.sources, self.extraction.contents(), strict=True
            )
        ]
        train, test = stores[0], stores[1] if len(stores) > 1 else None
        # Whether images leak is known when they were read.
        step, screening = self.step, replace(Screening.of(self.step, (train, test)), leaks="warn")
        for split in make_splits(step.protocol, train, test, step.seed, screening)[1]:
            check_rows(split)
            rows = RowBatches(None, train.labels, split.train.rows, groups=split.train.groups)
            self.estimator(len(train.classes)).split_rows(rows)

    def batches(self, rows: RowSet) -> RowBatches:
        """Return rows of a store as batches."""
        features, labels = rows.store.features(), rows.store.labels
        return RowBatches(features, labels, rows.rows, self.augment, groups=rows.groups)

    def estimator(self, n_classes: int, **more: Any) -> HeadClassifier:
        """Return the estimator of the step; ``more`` are its parameters for one training."""
        step = self.resolved
        class_name, own = OPTIMIZERS[step.optimizer]
        optimizer = {name: getattr(step, name) for name in own if getattr(step, name) is not None}
        given = {
            "module__trunk": self.trunk,
            "module__cut": self.cut,
            "module__head": step.head,
            "module__n_classes": n_classes,
            "module__seed": step.seed,
            "module__from_store": isinstance(self.embedder, Prefix),
            "module__freeze_statistics": step.batch_norm == "keep",
            "head_init": step.head_init,
            "losses": step.loss,
            "optimizer": getattr(torch.optim, class_name),
            "optimizer__weight_decay": step.weight_decay,
            **{f"optimizer__{name}": value for name, value in optimizer.items()},
            "lr": step.lr,
            "schedule": step.schedule,
            "max_epochs": step.epochs,
            "batch_size": step.batch_size,
            "shuffle": step.shuffle,
            "augment": self.augment,
            "validation": step.validation,
            "patience": step.patience,
            "precision": step.precision,
            "gradient_flow": step.gradient_flow,
            "seed": step.seed,
            "device": str(self.trunk.device),
        }
        return HeadClassifier(**{**given, **more})


def run_finetune(step: Finetune, context: Context, data: FinetuneData | None = None) -> Outcome:
    """Train and test what a step says, unless the same result exists already.

    ``data`` is that of the step, where some of its parts are replaced.
    """
    data = data or FinetuneData(step, context)
    name = f"{slug(step.dataset)}-{data.trunk.name}-{step.name}-{data.key[:8]}"
    path = context.workspace.results / f"{name}.json"
    model = context.workspace.models / f"{name}.safetensors"
    for folder in (path.parent, model.parent):
        remove_leftovers(folder)
    hashes = FileHashes(context.workspace.hashes)
    existing = None if step.force else complete_result(path, model.parent, hashes)
    if existing is None:
        outcome = outcome_of(result := _train_and_test(data, path, model), "done")
    else:
        _remove_checkpoints(model)
        outcome = outcome_of(result := renamed(existing, step.title, data.title), "up to date")
    left_out = result.extra.get("left_out", 0)
    if left_out:
        context.progress.note(f"warning: {left_out} unreadable images are left out")
    return replace(outcome, exit_code=LEFT_OUT if step.strict and left_out else 0)


def _remove_checkpoints(model: Path) -> None:
    for checkpoint in model.parent.glob(f"{model.stem}.*.checkpoint"):
        checkpoint.unlink(missing_ok=True)


def _train_and_test(data: FinetuneData, path: Path, model: Path) -> Result:
    """Train on every split of the protocol; save the result, and the network of the first."""
    step = data.step
    data.check_rows()
    train, *tests = data.extraction.stores()
    screening = Screening.of(step, (train, *tests))
    test = tests[0] if tests else None
    protocol, splits = make_splits(step.protocol, train, test, step.seed, screening)
    for split in splits:
        check_rows(split)  # again, because images that cannot be read were left out
    checkpoints = [model.with_suffix(f".{number}.checkpoint") for number in range(len(splits))]
    trained = [
        train_split(data, split, checkpoint, f"{data.key} {number}")
        for number, (split, checkpoint) in enumerate(zip(splits, checkpoints, strict=True))
    ]
    network, facts = trained[0][1], [tested.facts for tested, _ in trained]
    cost = {
        **{
            f"{part}_seconds": sum(one["seconds"][part] for one in facts)
            for part in ("search", "fit", "predict")
        },
        **network.count_parameters(),
    }
    extra = {
        "history": facts[0]["history"],
        "network": data.trunk.description,
        "automatic": data.automatic,
        "request": step.request(data.context, data.extraction.sources, data.automatic),
        "left_out": sum(len(store.skipped) for store in (train, *tests)),
        "map_layer": maps[-1] if (maps := map_stages(data.trunk)) else None,
        **({"gradient_flow": facts[0]["gradient_flow"]} if step.gradient_flow else {}),
    }
    notes = list(screening.notes)
    output = MethodOutput(data.title, [tested for tested, _ in trained], cost, notes, extra)
    result, table = build_result(step, data.key, protocol, output, data.context)
    about = {
        "trunk": data.trunk.description,
        "request": {**data.trunk_options, "fit": data.trunk.preprocessing.fit},
        "unfreeze": data.resolved.unfreeze,
        "head": step.head,
        "classes": list(train.classes),
        "title": result.title,
    }
    with one_at_a_time(path.parent):
        result.cost["model_bytes"] = save_head(model, network, about)
        save_result(result, path, table, model)
    _remove_checkpoints(model)
    return result


def train_split(
    data: FinetuneData, split: Split, checkpoint: Path, run: str
) -> tuple[SplitPredictions, HeadedNetwork]:
    """Train on one split's training rows and predict its test rows once.

    The checkpoint is written after every epoch, and an existing one is continued; ``run``
    identifies this training.
    """
    more: dict[str, Any] = {
        "progress": data.context.progress,
        "label": f"{data.trunk.name} · {split.name}",
        "n_classes": len(split.train.store.classes),
    }
    estimator = data.estimator(checkpoint=checkpoint, run=run, **more)
    train, test = data.batches(split.train), data.batches(split.test)
    estimator.fit(train, train.labels)
    lines, best, probe_c = estimator.epochs_, estimator.best_epoch_, estimator.probe_c_
    flow, trained, search_seconds = estimator.gradient_flow_, lines, 0.0
    if data.step.refit:
        more |= {"checkpoint": checkpoint.with_suffix(_REFIT), "run": f"{run} refit {best}"}
        more |= {"validation": 0.0, "patience": None, "stop_after": best, "probe_c": probe_c}
        estimator = data.estimator(**more)
        estimator.fit(train, train.labels)
        # The first training only chose how many epochs the second one has.
        trained, search_seconds = estimator.epochs_, sum(line["seconds"] for line in lines)
    began = time.perf_counter()
    scores: NDArray[np.float32] = estimator.predict_proba(test)
    predict_seconds = time.perf_counter() - began
    by = "validation accuracy" if data.step.validation else "the last one"
    start = {} if probe_c is None else {"probe c": probe_c}
    facts = {
        "chosen": {"epoch": best, "by": by, **start},
        # Of all epochs, those before an interruption included.
        "seconds": {
            "search": search_seconds,
            "fit": sum(line["seconds"] for line in trained),
            "predict": predict_seconds,
        },
        "history": lines,
        "gradient_flow": flow,
    }
    tested = SplitPredictions(split, scores.argmax(axis=1), scores, probabilities=True, facts=facts)
    return tested, estimator.module_
