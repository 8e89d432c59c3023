"""The recipes of the source experiments, small, on real images: what came out, how long it took.

    python benchmarks/recipes.py --shared DIR [--workspace DIR] [NAME …]

``DIR`` holds ``data/`` (the official STL-10 training split, fifty classes of Tiny-ImageNet, cats
and dogs, 4000 CIFAR images) and ``weights/``. Each recipe is the command that the record shows; it
stops and continues like any run. A name given again is measured again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from featpipe.evaluation.result import Result
from featpipe.provenance import environment, now

RECORD = Path(__file__).parent / "results" / "recipes-small.json"

# The network whose features are audited.
AUDIT = " --set extract.weights={weights}/resnet18-imagenet-pqf.safetensors"

# What makes a recipe small, offline and at home on the material; {data} and {weights} are folders.
SMALL: dict[str, str] = {
    "stl10": "--limit 1000 --set data={data} --set split=train --set protocol=holdout:0.2"
    " --set weights={weights}/resnet50-imagenet-pqf.safetensors --set finetune.epochs=5",
    "tiny_imagenet_losses": "--set data={data} --set epochs=4 --set image-size=64"
    " --set weights={weights}/resnet18-imagenet-pqf.safetensors",
    "dogs_vs_cats_optimizers": "--set data={data}" + AUDIT,
    "two_class_resnet34": "--set data={data} --set model=resnet18"
    " --set weights={weights}/resnet18-imagenet-pqf.safetensors",
    "cifar10_resnets": "--limit 1000 --set dataset=npz:{data}/cifar10/train_first4000.npz"
    " --set epochs=4 --set batch-size=32"
    " --set pretrained.weights={weights}/resnet50-imagenet-pqf.safetensors"
    " --set pretrained.image-size=64" + AUDIT,
    "cifar10_bit": "--limit 100 --set dataset=npz:{data}/cifar10/train_first4000.npz"
    " --set weights=none --set image-size=32 --set epochs=1 --set batch-size=16",
    "cifar10_gradcam": "--limit 1000 --set dataset=npz:{data}/cifar10/train_first4000.npz"
    " --set epochs=4 --set batch-size=32" + AUDIT,
    "cifar10_resnet9": "--set dataset=npz:{data}/cifar10/train_first4000.npz --set epochs=6"
    " --set batch-size=128 --set one-cycle.lr=0.1" + AUDIT,
}


def run(name: str, shared: Path, workspace: Path) -> dict[str, Any]:
    """Run one recipe and return what came out."""
    folders = {"data": str(shared / "data"), "weights": str(shared / "weights")}
    options = [part.format(**folders) for part in shlex.split(SMALL[name])]
    command = [sys.executable, "-m", "featpipe", "run", name, *options]
    start = time.perf_counter()
    ended = subprocess.run(
        [*command, "--json", "--workspace", str(workspace)],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    seconds = time.perf_counter() - start
    outcome = json.loads(ended.stdout.splitlines()[-1])
    paths = [path for path in outcome["paths"] if Path(path).parent.name == "results"]
    results = [Result.load(Path(path)) for path in dict.fromkeys(paths) if path.endswith(".json")]
    return {
        "command": f"featpipe run {name} {SMALL[name].format(data='DATA', weights='WEIGHTS')}",
        "seconds": round(seconds, 1),
        "message": outcome["message"],
        "tasks": [[task["task"], task["status"], task["seconds"]] for task in outcome["table"]],
        "results": [_row(result) for result in results],
        "report_mb": [
            round(Path(path).stat().st_size / 1e6, 2)
            for path in outcome["paths"]
            if path.endswith(f"{name}.html")
        ],
        "created": now(),
    }


def _row(result: Result) -> dict[str, Any]:
    accuracy = result.summary["accuracy"]
    return {
        "method": result.title,
        "accuracy": round(accuracy["value"], 4),
        "low": round(accuracy["low"], 4),
        "high": round(accuracy["high"], 4),
        "n_test": result.protocol["n_test"],
        "search_seconds": round(result.cost["search_seconds"], 1),
        "fit_seconds": round(result.cost["fit_seconds"], 1),
    }


def main() -> None:
    """Run the recipes asked for and write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(SMALL))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--workspace", type=Path)
    options = parser.parse_args()
    if not (options.shared / "data").is_dir():
        print(f"skipped: there is no {options.shared / 'data'}")
        return
    workspace = options.workspace or Path(tempfile.mkdtemp(prefix="featpipe-recipes-"))
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"recipes": {}}
    for name in options.names or SMALL:
        measured = run(name, options.shared.resolve(), workspace)
        record["recipes"][name] = measured
        record["environment"] = environment()
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: {measured['message']} in {measured['seconds']} s")
        print(pd.DataFrame(measured["results"]).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
