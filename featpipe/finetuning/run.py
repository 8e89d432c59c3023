"""Run `featpipe finetune`: store activations once, train the rest on them, test once.

A frozen stage gives the same activations in every epoch. They are written once into a sealed
store, and the epochs run on the rest of the network only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from featpipe.backbones import UNTRAINED, architecture_of, automatic, located
from featpipe.backbones.base import FrozenNetwork
from featpipe.backbones.runtime import Execution, choose_device
from featpipe.datasets import slug
from featpipe.datasets.dataset import SourceRequest
from featpipe.datasets.source import ImageSource
from featpipe.errors import UsageError
from featpipe.evaluation import assemble
from featpipe.evaluation.fitting import check_rows
from featpipe.evaluation.protocol import RowSet, Split, make_splits, resolve
from featpipe.evaluation.result import Result
from featpipe.evaluation.screening import Screening
from featpipe.extraction.batches import ExtractOptions
from featpipe.extraction.engine import Extraction
from featpipe.finetuning.nets import Trunk, load_trunk, map_stages
from featpipe.finetuning.network import HeadedNetwork, trained_stages
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


@dataclass
class FinetuneData:
    """Network and images of one fine-tuning; each part is made when it is first used."""

    step: Finetune
    context: Context

    @property
    def trunk_options(self) -> dict[str, Any]:
        """Options of :func:`load_trunk` with which the network can be loaded again."""
        step, file = self.step, user_path(self.step.weights)
        same = ("norm", "image_size", "fit", "decode", "device", "seed")
        weights = str(file.resolve()) if file.is_file() else step.weights
        options = {name: getattr(step, name) for name in same}
        return {"model": located(step.model), "weights": weights, **options}

    @cached_property
    def trunk(self) -> Trunk:
        """The network below the head."""
        return load_trunk(
            **self.trunk_options,
            sizes=(source.size for source in self.sources),
            hashes=FileHashes(self.context.workspace.hashes),
            download=self.step.download,
        )

    @cached_property
    def automatic(self) -> dict[str, Any]:
        """What each automatic option resolves to, given all the others."""
        step, trunk = self.step, self.trunk
        test: Any = self.sources[1] if len(self.sources) > 1 else None
        chosen = automatic(step.model, step.weights, download=step.download)
        published = architecture_of(step.model, download=step.download).published
        return {
            "device": choose_device().type,
            "unfreeze": "none" if trunk.pretrained else "all",
            "batch_norm": "keep" if trunk.pretrained else "update",
            "precision": "mixed" if trunk.device.type == "cuda" else "float32",
            "protocol": resolve("auto", test)[0],
            "fit": trunk.preprocessing.as_dict()["fit"],
            "weights": chosen.weights if published else UNTRAINED,
            "image_size": chosen.image_size,
        }

    @cached_property
    def resolved(self) -> Finetune:
        """The step with its automatic choices resolved."""
        return self.step.resolved(self.automatic)

    @cached_property
    def n_frozen(self) -> int:
        """Number of stages before those that learn; ``UsageError`` if any would stay random."""
        unfreeze, stages = str(self.resolved.unfreeze), self.trunk.stages
        trained = trained_stages(stages, unfreeze)
        if not self.trunk.pretrained and trained != slice(0, len(stages)):
            what = f"{self.trunk.name} is untrained: what stays frozen would stay random."
            raise UsageError(what, expected="--unfreeze all", got=f"--unfreeze {unfreeze}")
        return int(trained.start)

    @cached_property
    def embedder(self) -> FrozenNetwork:
        """What fills the stores: the frozen stages, if there are any and images do not change."""
        if not self.n_frozen or self.step.augment:
            return PreparedImages(self.trunk)
        how = Execution(self.step.runtime, progress=self.context.progress)
        return Prefix(self.trunk, self.n_frozen, how)

    @cached_property
    def sources(self) -> list[ImageSource]:
        """The training images and, where they have a split of their own, the test images."""
        return self.step.open_images(self.context, download=self.step.download)

    @cached_property
    def extraction(self) -> Extraction:
        """The stores of all splits, found or made."""
        step, embedder = self.step, self.embedder
        dtype = "uint8" if embedder.default_layer == IMAGE_LAYER else step.dtype
        return Extraction(
            SourceRequest.of(step),
            self.sources,
            self.context.workspace.activations / slug(step.dataset) / embedder.name,
            lambda: embedder,
            ExtractOptions(dtype=dtype, on_error=step.on_error, workers=step.workers),
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
        return self.resolved.key(inputs, image_size=None, fit="auto", **self.step.row_lists())

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
        stores: list[Any] = []
        for source, content in zip(self.sources, self.extraction.contents(), strict=True):
            usable = np.flatnonzero(content.labels >= 0)
            known = {"usable": usable, "path": source.name, "has_looks": False, "skipped": {}}
            stores.append(SimpleNamespace(**vars(content), **known, features=lambda: None))
        # Leaks are only known once the images have been read.
        for split in self.make_splits(stores, leaks="warn")[1]:
            self.estimator().split_rows(self.batches(split.train))

    def make_splits(self, stores: Sequence[Any], **how: Any) -> tuple[str, list[Split], list[str]]:
        """Return the protocol, its splits, and notes on rows left out; ``how`` is of screening."""
        screening = replace(Screening.of(self.step, stores), **how)
        train, test = (*stores, None)[:2]
        protocol, splits = make_splits(self.step.protocol, train, test, self.step.seed, screening)
        for split in splits:
            check_rows(split)
        return protocol, splits, screening.notes

    def batches(self, rows: RowSet) -> RowBatches:
        """Return rows of a store as batches."""
        features, labels = rows.store.features(), rows.store.labels
        return RowBatches(features, labels, rows.rows, groups=rows.groups)

    def estimator(self, **more: Any) -> HeadClassifier:
        """Return the estimator of the step; ``more`` are its parameters for one training.

        ``UsageError`` if an augmentation is too much for images of this size.
        """
        step, specs = self.resolved, self.step.augment
        class_name, own = OPTIMIZERS[step.optimizer]
        optimizer = {name: getattr(step, name) for name in ("weight_decay", *own)}
        same = (
            *("head_init", "lr", "schedule", "batch_size", "shuffle", "validation", "patience"),
            *("precision", "gradient_flow", "seed"),
        )
        return HeadClassifier(
            module__trunk=self.trunk,
            module__unfreeze=step.unfreeze,
            module__head=step.head,
            module__n_classes=len(self.sources[0].classes),
            module__seed=step.seed,
            module__from_store=isinstance(self.embedder, Prefix),
            module__freeze_statistics=step.batch_norm == "keep",
            losses=step.loss,
            optimizer=getattr(torch.optim, class_name),
            **{f"optimizer__{k}": value for k, value in optimizer.items() if value is not None},
            augment=Augmentation(specs, self.trunk.preprocessing) if specs else None,
            max_epochs=step.epochs,
            device=str(self.trunk.device),
            progress=self.context.progress,
            **{name: getattr(step, name) for name in same} | more,
        )


def run_finetune(data: FinetuneData) -> Outcome:
    """Train and test what a step asks for, unless the same result exists already."""
    step, context = data.step, data.context
    name = f"{slug(step.dataset)}-{data.trunk.name}-{step.name}-{data.key[:8]}"
    path = context.workspace.results / f"{name}.json"
    model = context.workspace.models / f"{name}.safetensors"
    for folder in (path.parent, model.parent):
        remove_leftovers(folder)
    hashes = FileHashes(context.workspace.hashes)
    existing = None if step.force else assemble.complete_result(path, model.parent, hashes)
    if existing is not None and step.leaks == "fail":
        leaks = existing.extra.get("leaks")
        if leaks is None or leaks["leaked"]:  # splitting the rows says what leaks, and fails
            existing = None
    if existing is None:
        result, status = _train_and_test(data, path, model), "done"
    else:
        result, status = assemble.renamed(existing, step.title, data.title), "up to date"
    for checkpoint in model.parent.glob(f"{model.stem}.*.checkpoint"):
        checkpoint.unlink(missing_ok=True)
    left_out = result.extra.get("left_out", 0)
    if left_out:
        context.progress.note(f"warning: unreadable images left out: {left_out}")
    outcome = assemble.outcome_of(result, status)
    return replace(outcome, exit_code=LEFT_OUT if step.strict and left_out else 0)


def _train_and_test(data: FinetuneData, path: Path, model: Path) -> Result:
    """Train on every split of the protocol; save the result, and the network of the first."""
    step = data.step
    data.check_rows()
    stores = data.extraction.stores()
    protocol, splits, notes = data.make_splits(stores)  # now without images that cannot be read
    trained = [
        train_split(data, split, model.with_suffix(f".{number}.checkpoint"), f"{data.key} {number}")
        for number, split in enumerate(splits)
    ]
    tested, (network, *_) = zip(*trained, strict=True)
    first = tested[0].facts
    seconds = [one.facts["seconds"] for one in tested]
    cost = {f"{part}_seconds": sum(one[part] for one in seconds) for part in assemble.PARTS}
    cost |= network.count_parameters()
    extra = {
        "history": first["history"],
        "network": data.trunk.description,
        "automatic": data.automatic,
        "request": step.request(data.context, data.extraction.sources, data.automatic),
        "left_out": sum(len(store.skipped) for store in stores),
        "map_layer": maps[-1] if (maps := map_stages(data.trunk)) else None,
        **({"gradient_flow": first["gradient_flow"]} if step.gradient_flow else {}),
    }
    output = assemble.MethodOutput(data.title, list(tested), cost, notes, extra)
    result, table = assemble.build_result(step, data.key, protocol, output, data.context)
    about = {
        "trunk": data.trunk.description,
        "request": {**data.trunk_options, "fit": data.trunk.preprocessing.fit},
        "unfreeze": data.resolved.unfreeze,
        "head": step.head,
        "classes": list(stores[0].classes),
    }
    with one_at_a_time(path.parent):
        result.cost["model_bytes"] = save_head(model, network, about)
        assemble.save_result(result, path, table, model)
    return result


def train_split(
    data: FinetuneData, split: Split, checkpoint: Path, run: str
) -> tuple[assemble.SplitPredictions, HeadedNetwork]:
    """Train on one split's training rows and predict its test rows once.

    An existing checkpoint of the same ``run``, which identifies this training, is continued.
    """
    label = f"{data.trunk.name} · {split.name}"
    train, test = data.batches(split.train), data.batches(split.test)
    first = estimator = data.estimator(label=label, checkpoint=checkpoint, run=run)
    first.fit(train, train.labels)
    best, probe_c, seconds = first.best_epoch_, first.probe_c_, {"search": 0.0}
    if data.step.refit:  # the first training only chose how many epochs the second one has
        estimator = data.estimator(
            label=label,
            checkpoint=checkpoint.with_suffix(".refit.checkpoint"),
            run=f"{run} refit {best}",
            validation=0.0,
            patience=None,
            stop_after=best,
            probe_c=probe_c,
        )
        estimator.fit(train, train.labels)
        seconds["search"] = sum(first.history[:, "seconds"])
    seconds["fit"] = sum(estimator.history[:, "seconds"])  # with epochs before an interruption
    started = time.perf_counter()
    scores: NDArray[np.float32] = estimator.predict_proba(test)
    seconds["predict"] = time.perf_counter() - started
    by = "validation accuracy" if data.step.validation else "the last one"
    facts = {
        "chosen": {"epoch": best, "by": by, **({} if probe_c is None else {"probe c": probe_c})},
        "seconds": seconds,
        "history": first.epochs_,
        "gradient_flow": first.gradient_flow_,
    }
    predicted = scores.argmax(axis=1)
    tested = assemble.SplitPredictions(split, predicted, scores, probabilities=True, facts=facts)
    return tested, estimator.module_
