"""A process that feeds damaged files to the parsers and prints what came out that should not.

``python -m tests.fuzz.feeding FOLDER SEED COUNT FROM``: the whole files are in FOLDER, see
``PARSERS``; before each case its number is written to FOLDER/case, so that the parent knows what
killed this process.
"""

from __future__ import annotations

import json
import random
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil
import torch  # what it maps is not counted as memory of a parser

from featpipe.backbones import check_tensors
from featpipe.backbones.architecture import load_state_dict
from featpipe.datasets.binary import Stl10
from featpipe.datasets.dataset import DatasetOptions, open_source, splits_of
from featpipe.datasets.images import read_image
from featpipe.errors import FeatpipeError
from featpipe.evaluation.models import load_model
from featpipe.evaluation.result import Result
from featpipe.finetuning.saved import load_head
from featpipe.labelmap import LabelMap
from featpipe.steps import Context
from featpipe.steps.plan import Plan
from featpipe.steps.recipe import read_recipe
from featpipe.store import FeatureStore
from featpipe.workspace import Workspace
from tests.fuzz.mutation import mutate

SECONDS = 20  # for one case; a parser takes milliseconds
MEMORY = 1 << 30  # that a parser may add to what the process has


def read_dataset(spec: str, options: DatasetOptions) -> None:
    for split in splits_of(spec, options):
        source = open_source(spec, split, options)
        source.read(len(source) - 1)


def read_stl10(path: Path) -> None:
    options = DatasetOptions(data=path.parent)
    Stl10.md5 = {"train": dict.fromkeys(("train_X.bin", "train_y.bin")), "test": {}}
    open_source("stl10", "train", options).read(0)


def read_store(path: Path) -> None:
    store = FeatureStore(path)
    for layer in store.layers:
        store.features(layer).sum()
    store.verify()


def read_weights(path: Path) -> None:
    check_tensors("resnet18", str(path))
    load_state_dict(path)


def read_result(path: Path) -> None:
    Result.load(path).predictions()


def plan_recipe(path: Path) -> None:
    Plan.of(read_recipe(path), Context(Workspace(path.parent))).forecast()


PARSERS: dict[str, Callable[[Path], object]] = {
    "image.*": read_image,
    "table.csv": lambda path: read_dataset(f"csv:{path}", DatasetOptions()),
    "data-*.npz": lambda path: read_dataset(f"npz:{path}", DatasetOptions()),
    "train_*.bin": read_stl10,
    "fold_indices.txt": read_stl10,
    "recipe.yaml": plan_recipe,
    "map.csv": LabelMap.load,
    "weights.*": read_weights,
    "store.h5": read_store,
    "model.skops": load_model,
    "model.npz": load_model,
    "head/*.safetensors": load_head,
    "head/*.json": lambda path: load_head(path.with_suffix(".safetensors")),
    "digits-*.json": read_result,
    "digits-*.npz": lambda path: read_result(next(path.parent.glob("digits-*.json"))),
}


def main(folder: Path, seed: int, count: int, first: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # what hangs is killed, wherever it hangs
    torch.set_num_threads(1)
    bound = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    cases = [
        (pattern, path, number)
        for pattern in PARSERS
        for path in sorted(folder.glob(pattern))
        for number in range(count)
    ]
    for position, (pattern, path, number) in list(enumerate(cases))[first:]:
        (folder / "case").write_text(f"{position} {pattern}")
        whole = path.read_bytes()
        rng = random.Random(f"{seed} {path.name} {number}")
        if number:  # the first is left whole: it has to be read
            path.write_bytes(mutate(whole, rng))
        signal.alarm(SECONDS)
        try:
            PARSERS[pattern](path)
        except FeatpipeError as error:
            readable = number and not re.search("[\ud800-\udfff]", str(error))
            got = "" if readable else traceback.format_exc()
        except BaseException:
            got = traceback.format_exc()
        else:
            got = ""
        finally:
            signal.alarm(0)
            path.write_bytes(whole)
        if got:
            wrong = {"parser": pattern, "case": [path.name, number], "got": got}
            print(json.dumps(wrong), flush=True)
    (folder / "case").unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
