"""What decoding JPEG files at a reduced scale saves, and how far features move.

Photographs of Dogs vs. Cats (sides of 50 to 768 pixels) enlarged with noise to 2 and to 12
megapixels, which real photographs of these sizes differ from in detail. Of each: milliseconds to
decode and resize, the cosine of ResNet-50's features to those of whole decoding, and images a
second from files to a sealed store in int8.

    python benchmarks/jpeg_decoding.py --out benchmarks/results/jpeg-decoding.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from featpipe.backbones import load_backbone
from featpipe.backbones.base import Backbone
from featpipe.datasets.images import read_image
from featpipe.extraction import Extract
from featpipe.provenance import environment
from featpipe.steps import Context
from featpipe.workspace import Workspace

SIZES = {"2 megapixels": (1600, 1200), "12 megapixels": (4032, 3024)}


def enlarge(path: Path, target: Path, size: tuple[int, int]) -> None:
    """Write a photograph enlarged to some pixels, with a sensor's noise."""
    with Image.open(path) as image:
        large = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    noise = np.random.default_rng(0).normal(0, 4, (300, 400, 3))
    repeats = -(-large.shape[0] // 300), -(-large.shape[1] // 400), 1
    tiled = np.tile(noise.astype(np.int16), repeats)[: large.shape[0], : large.shape[1]]
    noisy = np.clip(large + tiled, 0, 255).astype(np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy).save(target, quality=92)


def decoded(paths: list[Path], backbone: Backbone, how: str) -> tuple[float, np.ndarray]:
    """Return the milliseconds that one core takes for an image, and features (n, 2048)."""
    prepared = replace(backbone.preprocessing, decode=how)
    took, tensors = [], []
    for path in paths:
        began = time.perf_counter()
        tensors.append(prepared.prepare(read_image(path, prepared.decoded_side)))
        took.append(time.perf_counter() - began)
    features = [backbone.embed(part, None) for part in torch.stack(tensors).split(8)]
    layer = backbone.default_layer
    return 1e3 * statistics.median(took), np.concatenate([part[layer] for part in features])


def images_per_s(folder: Path, weights: Path, how: str) -> float:
    """Return the rate from files to a sealed store in int8, the network loaded and fitted."""
    with tempfile.TemporaryDirectory() as work:
        step = Extract(
            model="resnet50",
            weights=str(weights),
            dataset=f"folder:{folder}",
            device="cpu",
            precision="int8",
            decode=how,
        )
        extraction = step._extraction(Context(Workspace(Path(work))), download=False)
        extraction.embedder.prepare(tuple(extraction.contents()[0].shapes))
        (store,) = extraction.stores()
        return len(store) / sum(store.run["shares"].values())


def measure(folder: Path, weights: Path) -> dict[str, Any]:
    """Compare both ways of decoding on the photographs of a folder."""
    backbone = load_backbone("resnet50", str(weights), "cpu")
    paths = sorted(folder.rglob("*.jpg"))
    (full_ms, full), (scaled_ms, scaled) = (
        decoded(paths, backbone, how) for how in ("full", "scaled")
    )
    norms = np.linalg.norm(full, axis=1) * np.linalg.norm(scaled, axis=1)
    cosines = (full * scaled).sum(1) / norms
    return {
        "images": len(paths),
        "ms": {"full": round(full_ms, 2), "scaled": round(scaled_ms, 2)},
        "cosine": {"mean": round(float(cosines.mean()), 5), "min": round(float(cosines.min()), 5)},
        "int8_images_per_s": {
            how: round(images_per_s(folder, weights, how), 1) for how in ("full", "scaled")
        },
    }


def main() -> None:
    """Measure photographs of all sizes and print or write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=shared)
    parser.add_argument("--images", type=int, default=64, help="of each size")
    parser.add_argument("--folder", type=Path, help="of the photographs, kept; default: temporary")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    weights = options.shared / "weights" / "resnet50-imagenet-pqf.safetensors"
    originals = sorted((options.shared / "data" / "dogs-vs-cats" / "train").glob("*.jpg"))
    chosen = originals[:: len(originals) // options.images][: options.images]
    found: dict[str, Any] = {"environment": environment()}
    with tempfile.TemporaryDirectory() as temporary:
        for kind, size in SIZES.items():
            folder = (options.folder or Path(temporary)) / kind.replace(" ", "-")
            for path in chosen if not folder.exists() else ():
                enlarge(path, folder / path.name[:3] / path.name, size)
            found[kind] = measure(folder, weights)
            print(kind, json.dumps(found[kind]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
