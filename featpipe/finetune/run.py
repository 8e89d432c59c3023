"""What `featpipe finetune` does: stores once, epochs on the rest, one honest test, one result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe.datasets import slug
from featpipe.evaluation.assemble import (
    MethodOutput,
    SplitPredictions,
    build_result,
    complete_result,
    outcome_of,
    save_result,
)
from featpipe.evaluation.fitting import check_rows
from featpipe.evaluation.protocol import Split, make_splits
from featpipe.evaluation.result import Result
from featpipe.finetune.data import FinetuneData
from featpipe.finetune.network import HeadedNetwork
from featpipe.finetune.saved import save_head
from featpipe.steps import Context, Outcome

if TYPE_CHECKING:
    from featpipe.finetune.step import Finetune


def run_finetune(step: Finetune, context: Context, data: FinetuneData | None = None) -> Outcome:
    """Train and test what a step says, unless the same result exists already.

    Parameters
    ----------
    step : Finetune
    context : Context
    data : FinetuneData, optional
        Of the step, where some of its parts are replaced.
    """
    data = data or FinetuneData(step, context)
    name = f"{slug(step.dataset)}-{data.trunk.name}-finetune-{data.key[:8]}"
    path = context.workspace.results / f"{name}.json"
    existing = None if step.force else complete_result(path, _model_path(path, context))
    if existing is None:
        return outcome_of(_train_and_test(data, path), "done")
    if existing.settings["title"] != step.title:  # no training is repeated for a name
        existing.settings["title"] = step.title
        existing.title = step.title or _title(data)
        existing.save(path)
    return outcome_of(existing, "up to date")


def _train_and_test(data: FinetuneData, path: Path) -> Result:
    """Train on every split of the protocol; save the result, and the network of the first."""
    step, context = data.step, data.context
    train, *tests = data.extraction.stores()
    protocol, splits = make_splits(step.protocol, train, tests[0] if tests else None, step.seed)
    for split in splits:
        check_rows(split)
    model = _model_path(path, context)
    checkpoints = [model.with_name(f"{path.stem}.{n}.checkpoint") for n in range(len(splits))]
    trained = [
        train_split(data, split, checkpoint, f"{data.key} {number}")
        for number, (split, checkpoint) in enumerate(zip(splits, checkpoints, strict=True))
    ]
    network, facts = trained[0][1], [tested.facts for tested, _ in trained]
    cost = {
        "train_seconds": sum(one["seconds"]["fit"] for one in facts),
        "predict_seconds": sum(one["seconds"]["predict"] for one in facts),
        **network.count_parameters(),
    }
    extra = {
        "history": facts[0]["history"],
        "network": data.trunk.description,
        "request": step.request(context, data.extraction.sources),
        **({"gradient_flow": facts[0]["gradient_flow"]} if step.gradient_flow else {}),
    }
    evaluated = MethodOutput(_title(data), [tested for tested, _ in trained], cost, [], extra)
    result, table = build_result(step, data.key, protocol, evaluated, context)
    about = {
        "trunk": data.trunk.description,
        "request": data.trunk_options,
        "unfreeze": data.unfreeze,
        "head": step.head,
        "classes": list(train.classes),
        "title": result.title,
    }
    result.cost["model_bytes"] = save_head(model, network, about)
    result.files["model"] = model.name
    save_result(result, path, table)
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)
        _of_refit(checkpoint).unlink(missing_ok=True)
    return result


def train_split(
    data: FinetuneData, split: Split, checkpoint: Path, run: str
) -> tuple[SplitPredictions, HeadedNetwork]:
    """Train on one split's training rows and predict its test rows once.

    Parameters
    ----------
    data : FinetuneData
    split : Split
    checkpoint : Path
        Written after every epoch; an existing one is continued.
    run : str
        What tells this training from all others.
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
    flow, epochs = estimator.gradient_flow_, list(lines)
    if data.step.refit:
        more |= {"checkpoint": _of_refit(checkpoint), "run": f"{run} refit {best}"}
        more |= {"validation": 0.0, "patience": None, "stop_after": best, "probe_c": probe_c}
        estimator = data.estimator(**more)
        estimator.fit(train, train.labels)
        epochs += estimator.epochs_
    began = time.perf_counter()
    scores: NDArray[np.float32] = estimator.predict_proba(test)
    predict_seconds = time.perf_counter() - began
    by = "validation accuracy" if data.step.validation else "the last one"
    start = {} if probe_c is None else {"probe c": probe_c}
    facts = {
        "chosen": {"epoch": best, "by": by, **start},
        # Of all epochs, those before an interruption included.
        "seconds": {"fit": sum(line["seconds"] for line in epochs), "predict": predict_seconds},
        "history": lines,
        "gradient_flow": flow,
    }
    tested = SplitPredictions(split, scores.argmax(axis=1), scores, probabilities=True, facts=facts)
    return tested, estimator.module_


def _model_path(path: Path, context: Context) -> Path:
    return context.workspace.models / f"{path.stem}.safetensors"


def _of_refit(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".refit.checkpoint")


def _title(data: FinetuneData) -> str:
    what = {
        "none": "new head",
        "fc": "new head",
        "all": "fine-tuned" if data.trunk.pretrained else "from scratch",
    }
    return f"{data.trunk.name} {what.get(data.unfreeze, f'{data.unfreeze} fine-tuned')}"
