"""Small datasets in their official layouts, and a web server that misbehaves on demand."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image
from sklearn.datasets import load_digits

from featpipe.datasets.binary import Cifar10, Cifar100, Stl10
from featpipe.datasets.dataset import DatasetOptions
from featpipe.datasets.given import register_images
from featpipe.datasets.selection import stratified_split
from featpipe.fingerprint import FileHashes

# Other work on the machine must not fail a property.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

STL10_CLASSES = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A small dataset: how to ask for it, and what must come."""

    spec: str
    data: Path | None
    images: dict[str, np.ndarray | list[np.ndarray]]
    labels: dict[str, list[int]]
    classes: tuple[str, ...]
    change: Callable[[], None] | None = None
    """Changes a pixel of the first image of the first split."""


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def pictures(n: int, side: int = 8, seed: int = 0, colours: bool = True) -> np.ndarray:
    shape = (n, side, side, 3) if colours else (n, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_stl10(folder: Path, n: int = 20) -> dict[str, np.ndarray]:
    """Write all files of the binary version, ``n`` images a split; return the images."""
    folder.mkdir(parents=True)
    images = {}
    for seed, split in enumerate(("train", "test", "unlabeled")):
        images[split] = pictures(n, 96, seed)
        planes_by_column = images[split].transpose(0, 3, 2, 1)
        planes_by_column.tofile(folder / f"{split}_X.bin")
        if split != "unlabeled":
            (np.arange(n) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(STL10_CLASSES) + "\n")
    folds = np.arange(n).reshape(10, -1)
    (folder / "fold_indices.txt").write_text("\n".join(" ".join(map(str, f)) for f in folds))
    return images


def sums_of(kind: type[Cifar10 | Stl10], folder: Path) -> dict[str, dict[str, str]]:
    """Return the sums of the files that are there, in the place of the published ones."""
    return {
        split: {name: md5_of(folder / name) for name in names if (folder / name).exists()}
        for split, names in kind.md5.items()
    }


def write_cifar(folder: Path, kind: type[Cifar10], n: int = 4) -> dict[str, list]:
    """Write the binary version, ``n`` images a file; return images and labels."""
    folder.mkdir(parents=True)
    made: dict[str, list] = {}
    seed = 0
    for split in ("train", "test"):
        images, labels = [], []
        for name in kind.md5[split]:
            seed += 1
            batch, batch_labels = pictures(n, 32, seed), [(seed + at) % 10 for at in range(n)]
            planes = batch.transpose(0, 3, 1, 2).reshape(n, -1)
            coarse = np.full((n, kind.label_bytes - 1), 3, np.uint8)
            fine = np.array(batch_labels, np.uint8)[:, None]
            np.hstack([coarse, fine, planes]).tofile(folder / name)
            images.append(batch)
            labels += batch_labels
        made[split] = [np.concatenate(images), labels]
    names = [f"class{at}" for at in range(kind.n_classes)]
    (folder / kind.class_names).write_text("\n".join(names) + "\n\n")
    return made


def write_tiny_imagenet(folder: Path, wnids: list[str], n: int = 3) -> dict[str, list]:
    """Write training and validation images as PNG bytes under the official names."""
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(reversed(wnids)) + "\n")
    made: dict[str, list] = {"train": [[], []], "val": [[], []]}
    lines = []
    for label, wnid in enumerate(wnids):
        for at, image in enumerate(pictures(n, seed=label)):
            file = folder / "train" / wnid / "images" / f"{wnid}_{at}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file, "PNG")
            made["train"][0].append(image)
            made["train"][1].append(label)
    (folder / "val" / "images").mkdir(parents=True)
    for at, image in enumerate(pictures(n * len(wnids), seed=99)):
        Image.fromarray(image).save(folder / "val" / "images" / f"val_{at}.JPEG", "PNG")
        lines.append(f"val_{at}.JPEG\t{wnids[at % len(wnids)]}\t0\t0\t7\t7")
        made["val"][0].append(image)
        made["val"][1].append(at % len(wnids))
    (folder / "val" / "val_annotations.txt").write_text("\n".join(reversed(lines)) + "\n")
    return made


def _make_stl10(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    folder = tmp / "stl10_binary"
    images = write_stl10(folder)
    monkeypatch.setattr(Stl10, "md5", sums_of(Stl10, folder))

    def change() -> None:
        with (folder / "train_X.bin").open("r+b") as stream:
            stream.write(bytes([255 - int(images["train"][0, 0, 0, 0])]))
        monkeypatch.setattr(Stl10, "md5", sums_of(Stl10, folder))

    labels = {split: [row % 10 for row in range(20)] for split in ("train", "test")}
    labels["unlabeled"] = [-1] * 20
    return Made("stl10", tmp, images, labels, STL10_CLASSES, change)


def _make_cifar(kind: type[Cifar10]) -> Callable[[Path, pytest.MonkeyPatch], Made]:
    def make(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
        folder = tmp / kind.archive.folder
        made = write_cifar(folder, kind)
        monkeypatch.setattr(kind, "md5", sums_of(kind, folder))

        def change() -> None:
            file = folder / next(iter(kind.md5["train"]))
            content = bytearray(file.read_bytes())
            content[1000] ^= 255
            file.write_bytes(content)
            monkeypatch.setattr(kind, "md5", sums_of(kind, folder))

        return Made(
            kind.name,
            tmp,
            {split: images for split, (images, _) in made.items()},
            {split: labels for split, (_, labels) in made.items()},
            tuple(f"class{at}" for at in range(kind.n_classes)),
            change,
        )

    return make


def _make_tiny_imagenet(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    wnids = ["n00000001", "n00000002", "n00000010"]
    made = write_tiny_imagenet(tmp / "tiny-imagenet-200", wnids)
    first = tmp / "tiny-imagenet-200" / "train" / wnids[0] / "images" / f"{wnids[0]}_0.JPEG"
    images = {split: images for split, (images, _) in made.items()}
    labels = {split: labels for split, (_, labels) in made.items()}
    return Made("tiny-imagenet", tmp, images, labels, tuple(wnids), _inverting(first, "PNG"))


def _inverting(path: Path, format: str) -> Callable[[], None]:
    def change() -> None:
        with Image.open(path) as image:
            inverted = 255 - np.array(image)
        Image.fromarray(inverted).save(path, format)

    return change


def _make_dogs_vs_cats(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    for label, kind in enumerate(("cat", "dog")):
        for at, image in enumerate(pictures(10, seed=label)):
            file = tmp / "dogs-vs-cats" / "train" / f"{kind}.{at}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file, "PNG")
    names = [f"{kind}.{at}.jpg" for kind in ("cat", "dog") for at in range(10)]
    train, test = stratified_split(names, [0] * 10 + [1] * 10, 0.3, seed=0)
    rows = {"train": train, "test": test}
    every = np.concatenate([pictures(10, seed=0), pictures(10, seed=1)])
    first = tmp / "dogs-vs-cats" / "train" / "cat.0.jpg"
    return Made(
        "dogs-vs-cats",
        tmp,
        {split: every[rows[split]] for split in ("train", "test")},
        {split: [int(row) // 10 for row in rows[split]] for split in ("train", "test")},
        ("cat", "dog"),
        _inverting(first, "PNG"),
    )


def _make_folder(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    images: dict[str, list] = {"train": [], "test": []}
    labels: dict[str, list] = {"train": [], "test": []}
    for seed, split in enumerate(("train", "test")):
        for label, name in enumerate(("Äpfel", "birne 2", "birne 10")):
            for at, image in enumerate(pictures(2, seed=10 * seed + label)):
                save(tmp / "fruit" / split / name / f"{at}.png", image)
                images[split].append(image)
                labels[split].append(label)
    # casefold puts "ä" behind "b": what counts is that every machine does the same
    order = [1, 2, 0]
    for split in images:
        rows = [row for label in order for row in range(6) if labels[split][row] == label]
        images[split] = [images[split][row] for row in rows]
        labels[split] = [0, 0, 1, 1, 2, 2]
    first = tmp / "fruit" / "train" / "birne 2" / "0.png"
    classes = ("birne 2", "birne 10", "Äpfel")
    return Made(f"folder:{tmp / 'fruit'}", None, images, labels, classes, _inverting(first, "PNG"))


def _make_csv(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    images = {"train": pictures(4, seed=1), "test": pictures(3, seed=2)}
    lines = ["path,label,split"]
    for split in images:
        for at, image in enumerate(images[split]):
            save(tmp / "list" / "img" / f"{split}{at}.png", image)
            lines.append(f"img/{split}{at}.png,{('dog', 'cat', '')[at % 3]},{split}")
    (tmp / "list" / "table.csv").write_text("\n".join(lines) + "\n")
    labels = {"train": [1, 0, -1, 1], "test": [1, 0, -1]}
    first = tmp / "list" / "img" / "train0.png"
    spec = f"csv:{tmp / 'list' / 'table.csv'}"
    return Made(spec, None, images, labels, ("cat", "dog"), _inverting(first, "PNG"))


def _make_npz(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    tmp.mkdir()
    file = tmp / "some.npz"
    images = pictures(6, colours=False)
    arrays = {
        "labels": np.array([2, 0, 1, 2, -1, 1]),
        "classes": np.array(["ant", "bee", "cat"]),
        "split": np.array(["train", "test"] * 3),
    }
    np.savez(file, images=images, **arrays)

    def change() -> None:
        np.savez(file, images=255 - images, **arrays)

    grey = np.repeat(images[..., None], 3, axis=3)
    return Made(
        f"npz:{file}",
        None,
        {"train": grey[::2], "test": grey[1::2]},
        {"train": [2, 1, -1], "test": [0, 2, 1]},
        ("ant", "bee", "cat"),
        change,
    )


def _make_digits(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    tmp.mkdir()
    digits = load_digits()
    target = digits.target
    grey = np.rint(digits.images * 255 / 16).astype(np.uint8)
    every = np.repeat(grey[..., None], 3, axis=3)
    ids = [f"digits/{row:04d}" for row in range(len(every))]
    train, test = stratified_split(ids, target, 0.3, seed=0)
    rows = {"train": train, "test": test}
    return Made(
        "digits",
        None,
        {split: every[rows[split]] for split in rows},
        {split: target[rows[split]].tolist() for split in rows},
        tuple("0123456789"),
    )


def _make_torchvision(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The Describable Textures Dataset."""
    images, labels = {}, {}
    for seed, split in enumerate(("train", "val", "test")):
        images[split], labels[split] = pictures(4, seed=seed), [0, 0, 1, 1]
        lines = []
        for at, image in enumerate(images[split]):
            name = f"{('banded', 'woven')[at // 2]}/{split}_{at}.jpg"
            lines.append(name)
            file = tmp / "dtd" / "dtd" / "images" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file, "PNG")
        (tmp / "dtd" / "dtd" / "labels").mkdir(exist_ok=True)
        (tmp / "dtd" / "dtd" / "labels" / f"{split}1.txt").write_text("\n".join(lines))
    first = tmp / "dtd" / "dtd" / "images" / "banded" / "train_0.jpg"
    classes, change = ("banded", "woven"), _inverting(first, "PNG")
    return Made("torchvision:DTD", tmp, images, labels, classes, change)


def write_parquet(path: Path, images: list[np.ndarray], columns: dict, types: dict) -> None:
    """Write a Parquet file as the datasets library does, images as PNG files in its rows."""
    library = pytest.importorskip("datasets", reason="the extra hf is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    features = library.Features({"image": library.Image(), **types})
    library.disable_progress_bars()
    rows = {"image": [Image.fromarray(image) for image in images], **columns}
    library.Dataset.from_dict(rows, features=features).to_parquet(path)


def _make_hf(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A folder of Parquet files, as a dataset of the hub has them."""
    library = pytest.importorskip("datasets", reason="the extra hf is not installed")
    images = {"train": pictures(4, seed=1), "test": pictures(3, seed=2)}
    labels = {"train": [1, 0, -1, 1], "test": [1, 0, -1]}
    types = {"label": library.ClassLabel(names=["cat", "dog"])}

    def write(split: str, pixels: np.ndarray) -> None:
        file = tmp / "pets" / "data" / f"{split}-00000-of-00001.parquet"
        write_parquet(file, list(pixels), {"label": labels[split]}, types)

    for split, pixels in images.items():
        write(split, pixels)
    change = partial(
        write, "train", np.concatenate([255 - images["train"][:1], images["train"][1:]])
    )
    return Made(f"hf:{tmp / 'pets'}", None, images, labels, ("cat", "dog"), change)


def _make_images(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A list of arrays and PIL images, colour and grey."""
    tmp.mkdir()
    colour, grey = pictures(3, seed=1), pictures(1, seed=2, colours=False)
    given = [colour[0], Image.fromarray(colour[1]), colour[2], grey[0]]
    spec = register_images(given, ["dog", "cat", None, "dog"])
    images = [*colour, np.repeat(grey[0][..., None], 3, axis=2)]
    return Made(spec, None, {"all": images}, {"all": [1, 0, -1, 1]}, ("cat", "dog"))


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    """Write a tar file with these members, the same bytes each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def png(image: np.ndarray) -> bytes:
    """Return an image as the bytes of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def shard(tmp_path):
    """Write a tar file of images and other members, return its spec."""

    def write(*names: str, at: str = "pets.tar", **labels: object) -> str:
        members = dict.fromkeys(names, png(pictures(1)[0]))
        members |= {f"{key}.cls": str(label).encode() for key, label in labels.items()}
        write_shard(tmp_path / at, members)
        return f"wds:{tmp_path / at}"

    return write


def _make_wds(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Two shards of a training split, one of a test split, names of classes."""
    images = {"train": pictures(4, seed=1), "test": pictures(3, seed=2)}
    names = {"train": ["dog", "cat", "", "dog"], "test": ["dog", "cat", ""]}

    def write(split: str, pixels: np.ndarray) -> None:
        n = len(pixels)
        for shard, rows in enumerate([range(n)] if split == "test" else [range(2), range(2, n)]):
            members = {}
            for row in rows:
                members[f"{row:04d}.png"] = png(pixels[row])
                members[f"{row:04d}.cls"] = names[split][row].encode()
            write_shard(tmp / "shards" / f"{split}-{shard:03d}.tar", members)

    for split, pixels in images.items():
        write(split, pixels)
    changed = np.concatenate([255 - images["train"][:1], images["train"][1:]])
    labels = {"train": [1, 0, -1, 1], "test": [1, 0, -1]}
    change = partial(write, "train", changed)
    return Made(f"wds:{tmp / 'shards'}", None, images, labels, ("cat", "dog"), change)


MAKERS: dict[str, Callable[[Path, pytest.MonkeyPatch], Made]] = {
    "stl10": _make_stl10,
    "cifar10": _make_cifar(Cifar10),
    "cifar100": _make_cifar(Cifar100),
    "tiny-imagenet": _make_tiny_imagenet,
    "dogs-vs-cats": _make_dogs_vs_cats,
    "folder": _make_folder,
    "csv": _make_csv,
    "npz": _make_npz,
    "wds": _make_wds,
    "torchvision": _make_torchvision,
    "hf": _make_hf,
    "images": _make_images,
    "digits": _make_digits,
}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Made]:
    """Make a small dataset of a registered kind below the test's folder."""
    return lambda kind: MAKERS[kind](tmp_path / "made", monkeypatch)


@pytest.fixture
def options(tmp_path: Path) -> DatasetOptions:
    """Options with a workspace of the test's own and a memory of hashes."""
    return DatasetOptions(raw=tmp_path / "raw", hashes=FileHashes(tmp_path / "hashes.sqlite"))


@pytest.fixture
def options_for(options: DatasetOptions) -> Callable[..., DatasetOptions]:
    """Options for a made dataset, perhaps with other fields changed."""
    return lambda made, **fields: replace(options, data=made.data, **fields)


@pytest.fixture
def listed_by() -> Callable[[str], str]:
    """Source text of a dataset of torchvision, read without importing torch."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        pytest.skip("torchvision is not installed")
    folder = Path(spec.origin).parent / "datasets"
    return lambda name: (folder / f"{name}.py").read_text(encoding="utf-8")


class Listener:
    """A progress that records its calls."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: list[tuple[str, int, int]] = []
        self.steps = 0

    def task(self, label: str, total: int, done: int = 0) -> Listener:
        self.tasks.append((label, total, done))
        return self

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def advance(self, steps: int = 1, **facts: object) -> None:
        self.steps += steps

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@dataclass
class Web:
    """A server of one file under any path, whose next answers can be spoilt.

    Each entry of ``faults`` spoils one request: a status code, ``"drop:N"`` (close the connection
    after N bytes), ``"no range"`` (send everything), ``"wrong range"`` (answer another one),
    ``"no length"`` (do not say how long it is), ``"claim:N"`` (promise N bytes).
    """

    content: bytes = b""
    etag: str | None = '"v1"'
    faults: list[object] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    def url(self, name: str = "file.bin") -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            web.asked.append({**self.headers, "path": self.path})
            fault = web.faults.pop(0) if web.faults else None
            self.close_connection = True
            if isinstance(fault, int):
                self.send_error(fault)
                return
            start = self._start(fault)
            if start >= len(web.content) > 0:
                self.send_error(416)
                return
            body = web.content[start:]
            self.send_response(206 if start else 200)
            if start:
                sent = start + 1 if fault == "wrong range" else start
                end = len(web.content)
                self.send_header("Content-Range", f"bytes {sent}-{end - 1}/{end}")
            if web.etag:
                self.send_header("ETag", web.etag)
            promised = fault if isinstance(fault, str) and fault.startswith("claim:") else None
            length = int(promised[6:]) if promised else len(body)
            if fault != "no length":
                self.send_header("Content-Length", str(length))
            self.end_headers()
            if isinstance(fault, str) and fault.startswith("drop:"):
                body = body[: int(fault[5:])]
            self.wfile.write(body)

        def _start(self, fault: object) -> int:
            wanted = self.headers.get("Range")
            if not wanted or fault == "no range" or self.headers.get("If-Range") != web.etag:
                return 0
            return int(wanted.removeprefix("bytes=").removesuffix("-"))

    return Handler


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A web server on this machine, not reached through a proxy."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    state = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
