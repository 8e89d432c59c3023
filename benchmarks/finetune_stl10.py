"""Fine-tuning the last stage against the linear probe, on the same rows of STL-10.

    python benchmarks/finetune_stl10.py --shared ../shared

Both see the thousand training images of the first official fold and are tested once on the other
four thousand. Learning rate and epoch are chosen on a fifth of the thousand; then the network is
trained again on all of them, as the probe is.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featpipe.evaluation.protocol import make_splits
from featpipe.evaluation.result import Result
from featpipe.evaluation.run import evaluate, set_up
from featpipe.extraction import Extract
from featpipe.finetuning.run import FinetuneData
from featpipe.finetuning.step import Finetune
from featpipe.probes.svm import Svm
from featpipe.provenance import environment, now
from featpipe.statistics.paired_tests import Answers, between_models
from featpipe.statistics.verdicts import judge
from featpipe.steps import Context
from featpipe.store import FeatureStore
from featpipe.workspace import Workspace

HERE = Path(__file__).resolve().parent


def choose(step: Finetune, rates: list[float], context: Context) -> list[dict[str, Any]]:
    """Train with each learning rate and say how each did on validation rows only."""
    data = FinetuneData(step, context)
    store = data.extraction.stores()[0]
    rows = data.batches(make_splits(step.protocol, store, None, step.seed)[1][0].train)
    tried = []
    for rate in rates:
        estimator = data.estimator(lr=rate).fit(rows, rows.labels)
        best = estimator.epochs_[estimator.best_epoch_ - 1]
        names = ("epoch", "valid_accuracy", "valid_loss")
        tried.append({"lr": rate, **{name: best[name] for name in names}})
        print(tried[-1], flush=True)
    return tried


def main() -> None:
    """Run probe and fine-tuning in one workspace and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-5, 3e-5, 1e-4])
    parser.add_argument("--head-init", default="probe", choices=("probe", "random"))
    parser.add_argument("--workspace", type=Path, default=None)
    arguments = parser.parse_args()
    folder = arguments.workspace or Path(tempfile.mkdtemp())
    context = Context(workspace=Workspace(folder), jobs=1)
    images = {
        "model": "resnet18",
        "weights": str(arguments.shared / "weights" / "resnet18-imagenet-pqf.safetensors"),
        "dataset": "stl10",
        "data": str(arguments.shared / "data"),
        "split": "train",
        "image_size": arguments.image_size,
        "device": "cpu",
    }
    store = FeatureStore(Extract.from_mapping(images).run(context).paths[0])
    probe = evaluate(set_up(Svm(protocol="fold:0"), store), context, folder / "svm.json")
    print("svm", probe.summary["accuracy"], flush=True)
    step = Finetune.from_mapping(
        {
            **images,
            "protocol": "fold:0",
            "unfreeze": "layer4",
            "epochs": arguments.epochs,
            "batch_size": 32,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "schedule": "cosine",
            "validation": 0.2,
            "refit": True,
            "head_init": arguments.head_init,
        }
    )
    tried = choose(step, arguments.lr, context)
    best = max(tried, key=lambda one: (one["valid_accuracy"], -one["valid_loss"]))
    outcome = step.replace(lr=best["lr"]).run(context)
    tuned = Result.load(outcome.paths[0])
    right = [
        dict(zip(table.ids[table.row].tolist(), table.correct.tolist(), strict=True))
        for table in (tuned.predictions(), probe.predictions())
    ]
    same_rows = sorted(right[0])
    a, b = (np.array([one[name] for name in same_rows]) for one in right)
    record = {
        "what": f"ResNet-18, layer4 and head, STL-10 fold 0 (1000 train, {len(a)} test images), "
        f"{arguments.image_size} pixels",
        "fine_tuned": tuned.summary["accuracy"],
        "svm": probe.summary["accuracy"],
        "paired": judge([between_models(Answers(same_rows, a), Answers(same_rows, b))])[
            0
        ].as_dict(),
        "tried": tried,
        "chosen": tuned.splits[0]["chosen"] | {"lr": best["lr"]},
        "search_seconds": tuned.cost["search_seconds"],
        "fit_seconds": tuned.cost["fit_seconds"],
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "environment": environment(),
        "created": now(),
    }
    path = HERE / "results" / f"finetune-stl10-{arguments.head_init}.json"
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")
    print(json.dumps(record, indent=1, default=str))


if __name__ == "__main__":
    main()
