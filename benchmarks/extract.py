"""How near extraction is to what the hardware allows, beside its peers, in one run.

Every part runs in a process of its own, all of them on the same images, and all in each round, so
that what else the machine does reaches them alike; ratios are of the medians. The ceiling is the
forward pass of the best raw runtime: OpenVINO on random images with nothing beside it.

    python benchmarks/extract.py --images 500 --peers PYTHON … --out benchmarks/results/extract

``--peers`` names Pythons of environments with thingsvision, img2vec_pytorch, embetter and timm,
which cannot all share one; the first that can import a peer runs it. The images are Kaggle's cats
and dogs below ``--data`` (sides 50 to 768 pixels). Weights are random where a peer would download
them. Ours run with another network, too: --model torchvision:vit_b_16 --weights none
--parts ceiling,featpipe.
"""
# ruff: noqa: PLC0415 - the parts run in different environments

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDE = 224
BATCH = 32
OURS = ("ceiling", "ceiling int8", "featpipe", "featpipe torch", "featpipe int8", "plain torch")
PEERS = ("thingsvision", "img2vec_pytorch", "embetter", "timm")


def ceiling(
    paths: list[str], options: argparse.Namespace, precision: str = "float32"
) -> dict[str, Any]:
    """Return the rate of OpenVINO's forward pass alone: two streams, the best batch size."""
    import torch

    backbone = _backbone(options, precision, paths)
    backbone.prepare((backbone.default_layer,))
    (requests,) = backbone.runtime._requests.values()
    images = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8).numpy()
    from concurrent.futures import ThreadPoolExecutor

    def forward(n: int) -> None:
        request = requests.get()
        request.infer({0: images[:n]}, share_inputs=True)
        requests.put(request)

    rates = {}
    for batch in (8, 16, 32):
        with ThreadPoolExecutor(backbone.parallel) as pool:
            list(pool.map(forward, [batch] * 2))
            n = max(2, 2 * round(len(paths) / 6 / batch))  # as many for each stream
            began = time.perf_counter()
            list(pool.map(forward, [batch] * n))
            rates[batch] = n * batch / (time.perf_counter() - began)
    return {"images_per_s": max(rates.values()), "by_batch": rates}


def _backbone(options: argparse.Namespace, precision: str, paths: list[str]) -> Any:
    from featpipe.backbones import load_backbone
    from featpipe.backbones.runtime import Calibration
    from featpipe.datasets.images import read_image

    def images(preprocessing: Any) -> Any:
        import torch

        return torch.stack([preprocessing.prepare(read_image(Path(p))) for p in paths[:64]])

    seen = Calibration(images, "benchmark") if precision == "int8" else None
    how = {"runtime": "openvino", "precision": precision, "calibration": seen}
    return load_backbone(options.model, str(options.weights), "cpu", **how)


def featpipe(
    paths: list[str], options: argparse.Namespace, runtime: str = "auto", precision: str = "float32"
) -> dict[str, Any]:
    """Return the rate of files to sealed store, hashing and checks included, network loaded."""
    import featpipe.backbones.base
    import featpipe.extraction.engine  # noqa: F401 - imported before the clock starts
    from featpipe.extraction import Extract
    from featpipe.steps import Context
    from featpipe.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        dataset = "stl10" if options.stl10 else f"folder:{Path(paths[0]).parents[1]}"
        more = (
            {"split": "train", "data": options.data, "limit": len(paths)} if options.stl10 else {}
        )
        step = Extract(
            **{"model": options.model, "weights": str(options.weights), "dataset": dataset, **more},
            **{"runtime": runtime, "precision": precision, "device": "cpu"},
        )
        began = time.perf_counter()
        extraction = step._extraction(Context(Workspace(Path(folder))), download=False)
        hashed = time.perf_counter()
        facts = extraction.embedder.prepare(tuple(extraction.contents()[0].shapes))
        loaded = time.perf_counter()
        (store,) = extraction.stores()
        ended = time.perf_counter()
        against = store.run.get("against_float32")
        compared = against["seconds"] if against else 0.0  # the same, however many images there are
        seconds = (hashed - began) + (ended - loaded) - compared
        return {
            "images_per_s": len(store) / seconds,
            "loading_s": loaded - hashed,
            "comparing_s": compared,
            "against_float32": against,
            "shares": store.run["shares"],
            "seconds": seconds,
            **facts,
        }


def plain_torch(paths: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return the rate of twenty lines of PyTorch: Pillow, torchvision's transforms, batches."""
    import torch
    from PIL import Image
    from torchvision import transforms
    from torchvision.models import resnet50

    network = resnet50(weights=None).eval()
    network.fc = torch.nn.Identity()
    prepare = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(SIDE), transforms.ToTensor()]
    )
    began = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            network(torch.stack([prepare(Image.open(path).convert("RGB")) for path in part]))
    return {"images_per_s": len(paths) / (time.perf_counter() - began)}


def thingsvision(paths: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return the rate of thingsvision's extractor as its documentation uses it."""
    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader, ImageDataset

    extractor = get_extractor(
        model_name="resnet50", source="torchvision", device="cpu", pretrained=False
    )
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        dataset = ImageDataset(
            root=str(Path(paths[0]).parents[1]),
            out_path=out,
            backend=extractor.get_backend(),
            transforms=extractor.get_transformations(),
        )
        batches = DataLoader(dataset=dataset, batch_size=BATCH, backend=extractor.get_backend())
        found = extractor.extract_features(
            batches=batches, module_name="avgpool", flatten_acts=True
        )
        return {"images_per_s": len(found) / (time.perf_counter() - began)}


def img2vec_pytorch(paths: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return the rate of Img2Vec.get_vec on batches of images."""
    import torchvision
    from PIL import Image

    build = torchvision.models.resnet50
    torchvision.models.resnet50 = lambda *_, **__: build(weights=None)
    from img2vec_pytorch import Img2Vec

    embedder = Img2Vec(cuda=False, model="resnet50", layer_output_size=2048)
    began = time.perf_counter()
    for start in range(0, len(paths), BATCH):
        embedder.get_vec([Image.open(path).convert("RGB") for path in paths[start : start + BATCH]])
    return {"images_per_s": len(paths) / (time.perf_counter() - began)}


def embetter(paths: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return the rate of embetter's loader and encoder, a scikit-learn pipeline."""
    import timm

    build = timm.create_model
    timm.create_model = lambda name, **more: build(name, **{**more, "pretrained": False})
    from embetter.vision import ImageLoader, TimmEncoder

    loader, encoder = ImageLoader(convert="RGB"), TimmEncoder("resnet50")
    began = time.perf_counter()
    for start in range(0, len(paths), BATCH):
        encoder.transform(loader.transform(paths[start : start + BATCH]))
    return {"images_per_s": len(paths) / (time.perf_counter() - began)}


def timm(paths: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return the rate of timm's network, transform and loader with two worker processes."""
    import torch
    from timm import create_model
    from timm.data import ImageDataset, create_loader, resolve_data_config

    network = create_model("resnet50", pretrained=False, num_classes=0).eval()
    config = resolve_data_config({}, model=network)
    began = time.perf_counter()
    loader = create_loader(
        ImageDataset(str(Path(paths[0]).parents[1])),
        input_size=config["input_size"],
        batch_size=BATCH,
        use_prefetcher=False,
        num_workers=2,
    )
    with torch.inference_mode():
        n = sum(len(network(images)) for images, _ in loader)
    return {"images_per_s": n / (time.perf_counter() - began)}


PARTS = {
    "ceiling": ceiling,
    "ceiling int8": lambda paths, options: ceiling(paths, options, "int8"),
    "featpipe": featpipe,
    "featpipe torch": lambda paths, options: featpipe(paths, options, "torch"),
    "featpipe int8": lambda paths, options: featpipe(paths, options, "auto", "int8"),
    "plain torch": plain_torch,
    "thingsvision": thingsvision,
    "img2vec_pytorch": img2vec_pytorch,
    "embetter": embetter,
    "timm": timm,
}


def run_part(part: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a process of its own and return what it printed last."""
    python = sys.executable
    if part in PEERS:
        for python in options.peers:
            asked = [python, "-c", f"import {part}"]
            if not subprocess.run(asked, capture_output=True, check=False).returncode:
                break
        else:
            return {"error": "not installed"}
    command = [python, __file__, "--part", part, "--folder", str(folder)]
    command += ["--model", options.model, "--weights", str(options.weights)]
    command += ["--data", str(options.data), *(["--stl10"] if options.stl10 else [])]
    began = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        return {"error": ended.stderr.strip().splitlines()[-1:]}
    said = json.loads(ended.stdout.strip().splitlines()[-1])
    return {**said, "process_s": time.perf_counter() - began}


def processor() -> str:
    """Return the processor's name, and which of the instructions that matter it has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value for key, value in facts.items()}
    kinds = [name for name in ("avx512f", "avx512_vnni", "amx_int8") if name in facts["flags"]]
    return " ".join([facts["model name"].strip(), *kinds])


def versions(python: str) -> dict[str, str]:
    """Return the versions of what counts here in an environment."""
    code = (
        "import json, importlib.metadata as m\n"
        "names = {'torch', 'torchvision', 'openvino', 'nncf', 'pillow', 'thingsvision',"
        " 'img2vec-pytorch', 'embetter', 'timm'}\n"
        "found = {d.metadata['Name'].lower().replace('_', '-'): d.version"
        " for d in m.distributions()}\n"
        "print(json.dumps({n: found[n] for n in sorted(names & set(found))}))"
    )
    ended = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)


def main() -> None:
    """Run all parts in rounds; write JSON and Markdown."""
    shared = Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parts", help="only these, separated by commas")
    parser.add_argument("--peers", nargs="*", default=[], help="Pythons with peers; first first")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument(
        "--weights", type=Path, default=shared / "weights/resnet50-imagenet-pqf.safetensors"
    )
    parser.add_argument("--data", type=Path, default=shared / "data")
    parser.add_argument("--stl10", action="store_true", help="STL-10's binary instead of files")
    parser.add_argument("--out", type=Path, help="results, without ending")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        paths = sorted(map(str, options.folder.rglob("*.jpg")))
        print(json.dumps(PARTS[options.part](paths, options)))
        return
    parts = (
        options.parts.split(",") if options.parts else [*OURS, *(PEERS if options.peers else ())]
    )
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    with tempfile.TemporaryDirectory() as temporary:
        originals = sorted((options.data / "dogs-vs-cats" / "train").glob("*.jpg"))
        for path in originals[:: max(1, len(originals) // options.images)][: options.images]:
            target = Path(temporary) / path.name[:3] / path.name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
        for _ in range(options.rounds):
            for part in parts:
                found[part].append(run_part(part, Path(temporary), options))
                print(part, json.dumps(found[part][-1]), flush=True)
    rates = {
        part: statistics.median(run["images_per_s"] for run in runs if "error" not in run)
        for part, runs in found.items()
        if any("error" not in run for run in runs)
    }
    lines = ["| | images/s | of the ceiling |", "| --- | --- | --- |"]
    for part, rate in rates.items():
        base = rates.get("ceiling int8" if "int8" in part else "ceiling")
        lines.append(
            f"| {part} | {rate:.1f} | {rate / base:.2f} |" if base else f"| {part} | {rate:.1f} | |"
        )
    print("\n".join(lines))
    if options.out:
        about = {
            "images": options.images,
            "source": "STL-10 binary" if options.stl10 else "JPEG files",
            "model": options.model,
            "machine": {
                "cores": len(os.sched_getaffinity(0)),
                "processor": processor(),
            },
            "versions": {"ours": versions(sys.executable)}
            | {f"peers {n}": versions(one) for n, one in enumerate(options.peers, 1)},
        }
        content = {**about, "images_per_s": rates, "runs": found}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
