"""The real STL-10 run: extract all training images, evaluate by the official folds, record.

    python benchmarks/stl10.py --shared DIR [--model resnet50] [--workspace DIR]

``DIR`` holds ``data/stl10_binary`` and ``weights/MODEL-imagenet-pqf.safetensors``. The test split
is not needed: a model trained on an official fold (1000 images) is tested on the other 4000.
Stops and continues like any run; what is up to date is not computed again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from featpipe.api import compare, evaluate, extract
from featpipe.cli.console import Console
from featpipe.evaluation.result import Result
from featpipe.provenance import environment

RESULTS = Path(__file__).parent / "results"
CURVE = (1, 2, 5, 10, 20, 50, 100)


def main() -> None:
    """Run and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--fit", default="auto", choices=("auto", "crop", "whole"))
    parser.add_argument("--workspace", type=Path, default=Path())
    options = parser.parse_args()
    weights = options.shared / "weights" / f"{options.model}-imagenet-pqf.safetensors"
    if not weights.exists():
        print(f"skipped: there is no {weights}")
        return
    start = time.perf_counter()
    (store,) = extract(
        "stl10",
        options.model,
        workspace=options.workspace,
        progress=Console().progress,
        weights=str(weights),
        data=options.shared / "data",
        split="train",
        fit=options.fit,
    )
    again = _up_to_date_seconds(options, weights)

    def run(method: str, **settings: Any) -> Result:
        result = evaluate(method, store, workspace=options.workspace, **settings)
        accuracy = result.summary["accuracy"]
        print(f"{result.title:32} {result.protocol['name']:8} {accuracy['value']:.4f}", flush=True)
        return result

    everything = [
        run("zeroshot", policy=p, protocol="all") for p in ("argmax", "group", "restricted")
    ]
    narrow = run("zeroshot", protocol="all", map="imagenet_to_stl10_narrow")
    fold = [run(m, protocol="fold:0") for m in ("svm", "logistic", "knn", "centroid")]
    folds = [run(method, protocol="folds") for method in ("svm", "logistic")]
    curve = run("logistic", protocol="fold:0", train_per_class=CURVE, repeats=5)
    record = {
        "what": __doc__.splitlines()[0],
        "model": options.model,
        "fit": options.fit,
        "images": len(store),
        "extraction": {k: store.run[k] for k in ("seconds", "images_per_s", "shares", "device")},
        "up_to_date_seconds": again,
        "zeroshot_all_rows": {r.settings["policy"]: _facts(r) for r in everything},
        "zeroshot_narrow_map": _facts(narrow),
        "fold_0": {r.method: _facts(r) for r in fold},
        "ten_folds": {r.method: _facts(r) for r in folds},
        "low_shot_logistic": curve.extra["low_shot"],
        "paired_tests_fold_0": compare(fold).pairs,
        "total_seconds": round(time.perf_counter() - start, 1),
        "environment": environment(),
    }
    path = RESULTS / f"stl10-{options.model}-{options.fit}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"→ {path}")


def _facts(result: Result) -> dict[str, Any]:
    metrics = result.summary["metrics"]
    named = ("coverage", "accuracy_with_source", "classes_without_source", "balanced_accuracy")
    return {
        "accuracy": result.summary["accuracy"],
        "spread": result.summary["spread"].get("accuracy"),
        "chosen": [split.get("chosen") for split in result.splits][:10],
        "search_seconds": round(result.cost["search_seconds"], 2),
        "fit_seconds": round(result.cost["fit_seconds"], 2),
        "notes": result.notes,
        **{name: metrics[name] for name in named if name in metrics},
    }


def _up_to_date_seconds(options: argparse.Namespace, weights: Path) -> float:
    """Time the second run of the command in a process of its own, start-up included."""
    command = [sys.executable, "-m", "featpipe", "extract", "--model", options.model]
    command += ["--weights", str(weights), "--dataset", "stl10", "--split", "train"]
    command += ["--data", str(options.shared / "data"), "--fit", options.fit]
    command += ["--workspace", str(options.workspace)]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return round(min(seconds), 3)


if __name__ == "__main__":
    main()
