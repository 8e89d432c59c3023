"""What computing the frozen prefix once is worth, against running the network in every epoch.

    python benchmarks/frozen_prefix.py --shared ../shared --images 400 --image-size 224

Both ways train the same new head on real STL-10 images (Adam, cosine schedule, 20 epochs) with
the same estimator, seed and split; only what is stored differs. Wall time is what a user waits for,
from the request to the tested result: reading, the frozen network, all epochs, the test. CPU
time is measured too, because it does not see what else the machine is doing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from featpipe.evaluation.result import Result
from featpipe.finetuning.run import FinetuneData, PreparedImages, run_finetune
from featpipe.finetuning.step import Finetune
from featpipe.provenance import environment, now
from featpipe.steps import Context
from featpipe.workspace import Workspace

HERE = Path(__file__).resolve().parent


def measure(options: dict[str, Any], *, whole: bool) -> dict[str, Any]:
    """Train and test once in an empty workspace."""
    with tempfile.TemporaryDirectory() as folder:
        step, context = Finetune.from_mapping(options), Context(workspace=Workspace(Path(folder)))
        wall, cpu = time.perf_counter(), time.process_time()
        data = FinetuneData(step, context)
        if whole:
            data.embedder = PreparedImages(data.trunk)
        outcome = run_finetune(data)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        result = Result.load(outcome.paths[0])
        predictions = result.predictions()
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "extract_s": round(result.cost["extract_seconds"], 2),
        "epochs_s": round(sum(line["seconds"] for line in result.extra["history"]), 2),
        "accuracy": result.summary["accuracy"]["value"],
        "n_test": result.protocol["n_test"],
        "last_train_loss": result.extra["history"][-1]["train_loss"],
        "predicted": predictions.predicted.tolist(),
    }


def main() -> None:
    """Measure both ways in one run and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    weights = arguments.shared / "weights" / f"{arguments.model}-imagenet-pqf.safetensors"
    options = {
        "model": arguments.model,
        "weights": str(weights),
        "dataset": "stl10",
        "data": str(arguments.shared / "data"),
        "split": "train",
        "protocol": "holdout:0.1",
        "limit": arguments.images,
        "image_size": arguments.image_size,
        "epochs": arguments.epochs,
        "optimizer": "adam",
        "schedule": "cosine",
        "unfreeze": "none",
        "device": "cpu",
    }
    load = os.getloadavg()[0]
    once = measure(options, whole=False)
    print("prefix once:", {k: v for k, v in once.items() if k != "predicted"}, flush=True)
    plain = measure(options, whole=True)
    print("every epoch:", {k: v for k, v in plain.items() if k != "predicted"}, flush=True)
    same = sum(a == b for a, b in zip(once.pop("predicted"), plain.pop("predicted"), strict=True))
    record = {
        "what": f"{arguments.model}, new head, {arguments.epochs} epochs, {arguments.images} "
        f"STL-10 images of {arguments.image_size} pixels, a tenth of them tested",
        "prefix_once": once,
        "network_every_epoch": plain,
        "times_less_wall": round(plain["wall_s"] / once["wall_s"], 1),
        "times_less_cpu": round(plain["cpu_s"] / once["cpu_s"], 1),
        "equal_predictions": f"{same} of {once['n_test']}",
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
        "environment": environment(),
        "created": now(),
    }
    path = HERE / "results" / "frozen_prefix.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
