"""What an extraction of very many images takes: memory, and time for each image.

The whole of a run is counted: planning, hashing, journal, sealing, and the look that says "up to
date". A million rows of 32 x 32 pixels are made when they are read and embedded by a trivial
network; 60,000 files are CIFAR-10's images with noise, embedded by the network that ships with
featpipe. Each measurement has a process of its own; memory is the peak above what Python, the
libraries and the loaded network take.

    python benchmarks/extraction_memory.py --out benchmarks/results/extraction-memory.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from featpipe.backbones import MODELS
from featpipe.backbones.architecture import Architecture
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.datasets import DATASETS
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.source import Identity, ImageSource, row_ids
from featpipe.extraction import Extract
from featpipe.provenance import environment
from featpipe.steps import Context
from featpipe.workspace import Workspace

SIDE = 32
ROWS = (1_000, 10_000, 100_000, 1_000_000)
FILES = 60_000
CLASSES = tuple(f"class {n}" for n in range(10))


class Simulated(ImageSource):
    """Images that are made when they are read."""

    def read(self, row: int) -> np.ndarray:
        """Return an image that its row decides."""
        values = np.arange(SIDE * SIDE * 3, dtype=np.uint32) * (2 * row + 1)
        return (values >> 3).astype(np.uint8).reshape(SIDE, SIDE, 3)


@DATASETS.register
class SimulatedDataset(Dataset):
    """Images that are made when they are read."""

    name = "simulated"
    argument_name = "ROWS"

    def open(self, split: str) -> ImageSource:
        """Return as many images as the argument says."""
        n = int(self.argument)
        labels = np.arange(n) % len(CLASSES)
        identity = Identity(self.spec, split, CLASSES, row_ids(split, n), labels)
        return Simulated(identity, self.argument, "simulated")


def register_trivial(folder: Path) -> Path:
    """Register a network of two layers; return a file of weights for it."""

    def build(num_classes: int) -> nn.Module:
        pool = nn.Sequential(nn.AvgPool2d(SIDE // 4), nn.Flatten())
        return nn.Sequential(pool, nn.Linear(48, num_classes))

    prepared = Preprocessing(resize=SIDE, crop=SIDE)
    MODELS.register(
        Architecture(
            name="trivial",
            summary="means of 16 squares",
            build=build,
            classifier="1",
            file_preprocessing=prepared,
            default_layer="0",
        )
    )
    torch.manual_seed(0)
    path = folder / "trivial.safetensors"
    save_file(build(10).state_dict(), path)
    return path


def peak_bytes() -> int:
    """Return the most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and what it returns."""
    began = time.perf_counter()
    value = call()
    return time.perf_counter() - began, value


def measure(dataset: str, model: str, warm: str) -> dict[str, Any]:
    """Extract a dataset twice in this process; ``warm`` is a small one that is extracted before."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = str(register_trivial(folder)) if model == "trivial" else "DEFAULT"

        def extract(what: str) -> Any:
            step = Extract(model=model, weights=weights, dataset=what, device="cpu")
            return step.run(Context(Workspace(folder)))

        extract(warm)
        before = peak_bytes()
        seconds, outcome = timed(lambda: extract(dataset))
        peak = peak_bytes() - before
        again, found = timed(lambda: extract(dataset))
        assert (outcome.status, found.status) == ("done", "up to date")
        (store,) = outcome.facts["stores"]
        return {
            "images": store["images"],
            "seconds": round(seconds, 2),
            "us_per_image": round(1e6 * seconds / store["images"], 1),
            "of_which_batches_s": {part: round(s, 2) for part, s in store["shares"].items()},
            "peak_mb_above_model": round(peak / 1e6, 1),
            "peak_mb": round(peak_bytes() / 1e6, 1),
            "up_to_date_s": round(again, 2),
        }


def write_files(archive: Path, folder: Path, n: int) -> None:
    """Write images of CIFAR-10 with noise, half of them PNG and half JPEG, in class folders."""
    with np.load(archive, allow_pickle=False) as content:
        images, labels = content["images"], content["labels"]
    rng = np.random.default_rng(0)
    for row in range(n):
        place = row % len(images)
        noise = rng.integers(-8, 9, images.shape[1:])
        noisy = np.clip(images[place] + noise, 0, 255).astype(np.uint8)
        kind = folder / f"{labels[place]}"
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(kind / f"{row:05d}.{'png' if row % 2 else 'jpg'}", quality=95)


def in_a_process(*arguments: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", *arguments]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    print(*arguments, json.dumps(found), flush=True)
    return found


def main() -> None:
    """Measure all sizes and print or write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS, help="of simulated images")
    parser.add_argument("--files", type=int, default=FILES, help="0: none")
    shared = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=shared)
    parser.add_argument("--folder", type=Path, help="of the files, kept; default: a temporary one")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    found: dict[str, Any] = {"environment": environment()}
    found["simulated"] = [
        in_a_process(f"simulated:{n}", "trivial", "simulated:64") for n in options.rows
    ]
    if options.files:
        archive = options.shared / "data" / "cifar10" / "train_first4000.npz"
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.folder or Path(temporary) / "files"
            small = Path(temporary) / "small"
            if not folder.exists():
                write_files(archive, folder, options.files)
            write_files(archive, small, 64)
            found["files"] = in_a_process(f"folder:{folder}", "glyphnet", f"folder:{small}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
