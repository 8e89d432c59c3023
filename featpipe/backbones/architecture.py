"""Architectures and their weights; reading a weights file never runs code from it."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from featpipe.backbones import UNTRAINED, WEIGHTS_SUFFIXES, Automatic, weights_file
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.datasets.download import fetch
from featpipe.errors import DownloadError, UnknownNameError, UsageError, WeightsError, did_you_mean
from featpipe.files import open_regular
from featpipe.fingerprint import FileHashes, of_bytes
from featpipe.labelmap import SourceClasses
from featpipe.lazy import Lazy
from featpipe.progress import SILENT, Progress
from featpipe.steps.grammar import LOGITS

hub, hub_errors = Lazy("huggingface_hub"), Lazy("huggingface_hub.errors")

# Keys of the state dict in checkpoints that also hold the optimiser, the epoch and the like.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
EMBEDDING = "embedding"  # the layer that a network's authors call so, or its pooled output
# A counter that batch norm needs only in training; old checkpoints lack it.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class PublishedWeights:
    """Published weights of an architecture."""

    name: str  # as the user gives it: "IMAGENET1K_V2"
    # A URL; a file that a package contains; a function that returns the file in a library's own
    # cache (its argument: whether it may be downloaded); or the info of weights in memory.
    location: str | Path | Callable[[bool], Path] | WeightsInfo
    preprocessing: Preprocessing  # of the images in their training
    source_classes: Callable[[], SourceClasses | None]  # returns the classes of their logits
    trained_on: str = ""  # labelled dataset, such as "ImageNet-1k"; empty: unknown


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network that can be built, and its published weights."""

    name: str
    build: Callable[[int], nn.Module]  # build(num_classes) returns the untrained network
    classifier: str  # name of the last linear layer; empty if there is none
    file_preprocessing: Preprocessing  # for weights from a file, which does not contain its own
    summary: str = ""  # one line for ``featpipe models``, unless the registry has one
    # By upper-case name, including "DEFAULT"; empty if there are none.
    published: Mapping[str, PublishedWeights] = field(default_factory=dict)
    # Its activations are the features unless others are named; default: the classifier's input.
    default_layer: str = EMBEDDING
    # Further names of layers, each with candidates, of which the first that exists is meant.
    layers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    configuration: str = ""  # digest of settings, besides name and weights, that change the output
    # Reads weights in a library's own layout; default: names and shapes have to match.
    read: Callable[[WeightsInfo], nn.Module] | None = None
    # Returns the stages of the network without its classifier; default: known, or a single one.
    stages: Callable[[nn.Module], nn.Sequential | None] = lambda network: None

    def __post_init__(self) -> None:
        own = {LOGITS: (self.classifier,)} if self.classifier else {}
        if self.classifier and self.default_layer == EMBEDDING:
            own[EMBEDDING] = (f"{self.classifier}:input",)
        object.__setattr__(self, "layers", {**own, **self.layers})

    def automatic(self, weights: str) -> Automatic:
        """Return the default options for these weights."""
        default, chosen = (self.published.get(key) for key in ("DEFAULT", weights.upper()))
        prepared = chosen.preprocessing if chosen else self.file_preprocessing
        side, margin = prepared.crop, prepared.resize > prepared.crop
        name, trained_on = (default.name, default.trained_on) if default else ("DEFAULT", "")
        return Automatic(name, side, margin, self.default_layer, trained_on, prepared.fit)

    def open(
        self, weights: str, hashes: FileHashes, progress: Progress, *, download: bool
    ) -> tuple[nn.Module, WeightsInfo]:
        """Return the network with its weights; arguments are those of :func:`find_weights`."""
        if weights == UNTRAINED:
            progress.note(f"{self.name}: untrained, with random weights (seed 0)")
            network, default = self.untrained(), self.published.get("DEFAULT")
            return network, WeightsInfo(UNTRAINED, digest_of(network.state_dict()), None, default)
        found = find_weights(self, weights, hashes, progress, download=download)
        if self.read:
            return self.read(found), found
        assert found.path is not None
        return load_network(self, found.path), found

    def untrained(self, seed: int = 0, num_classes: int = 1000) -> nn.Module:
        """Return the network with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(num_classes)

    def on_meta(self, num_classes: int) -> nn.Module:
        """Return the network in evaluation mode on the meta device: shapes without values."""
        try:
            with torch.device("meta"):
                return self.build(num_classes).eval()
        except NotImplementedError:  # building it computes values
            return self.build(num_classes).eval()


@dataclass(frozen=True)
class Family:
    """A library of networks: ``architecture`` defines the meaning of ``--model NAME:ARGUMENT``."""

    name: str
    # Its arguments: a network's name, and whether a description of it may be downloaded.
    architecture: Callable[[str, bool], Architecture]
    summary: str = ""  # as for an architecture


@dataclass(frozen=True)
class WeightsInfo:
    """The origin of weights."""

    name: str  # of the published weights, or of the file
    sha256: str  # of the file, or of the values of random weights
    path: Path | None  # None: random weights, or those of a module in memory
    published: PublishedWeights | None  # None: the user's own file


def find_weights(
    architecture: Architecture,
    weights: str,
    hashes: FileHashes,
    progress: Progress = SILENT,
    *,
    download: bool = True,
) -> WeightsInfo:
    """Find the file of weights; missing published ones are downloaded, unless forbidden."""
    known, name = architecture.published, architecture.name
    published = known.get(weights.upper())
    if published is None:
        if path := weights_file(name, weights):
            return WeightsInfo(path.name, hashes.one(path), path, None)
        if not known:
            what = f"There are no published weights for {name}."
            advice = f"--weights FILE, or train it: featpipe finetune --model {name}"
            raise UsageError(what, next_step=advice)
        expected = ", ".join(known) + ", or a weights file"
        what = f"There are no weights named {weights!r} for {name}."
        raise UnknownNameError(what, weights.upper(), known, expected=expected)
    url = published.location
    if isinstance(url, WeightsInfo):
        return url
    if not isinstance(url, str):
        path = url if isinstance(url, Path) else url(download)
        return WeightsInfo(published.name, hashes.one(path), path, published)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    # By torch hub's convention, the file name contains the first digits of the SHA-256.
    named = re.search(r"-([0-9a-f]{8,})\.", path.name)
    prefix = named[1] if named else ""
    if not path.exists():
        if not download:
            what = f"The weights {path.name} are not here."
            advice = f"allow the download, or fetch {url} yourself: --weights FILE"
            raise WeightsError(what, where=path, got="--no-download", next_step=advice)
        try:
            fetch(url, path, digest=f"sha256:{prefix}" if prefix else None, progress=progress)
        except DownloadError as error:
            what = f"The weights {path.name} are not here and could not be downloaded."
            got = f"{error.what} {error.details.get('got', '')}".strip()
            advice = "one of three: connect to a network and try again; give the weights as a file"
            advice += " with --weights FILE; or run `featpipe demo`, whose backbone is built in"
            raise WeightsError(what, where=url, got=got, next_step=advice) from None
    digest = hashes.one(path)
    if not digest.startswith(prefix):
        what = "The downloaded weights are damaged."
        advice = f"delete the file; it is then downloaded again from {url}"
        expected, got = f"SHA-256 {prefix}…", f"{digest[: len(prefix)]}…"
        raise WeightsError(what, where=path, expected=expected, got=got, next_step=advice)
    return WeightsInfo(published.name, digest, path, published)


def cached_file(model: str, repository: str, names: Sequence[str], download: bool) -> Path:
    """Return the first of several files that a repository of the Hugging Face hub has.

    A file in the cache of the hub's libraries is used as it is, even without a network.
    ``repository`` may end in ``@REVISION``. ``WeightsError`` if no file is cached and none could,
    or should, be downloaded.
    """
    name, _, revision = repository.partition("@")
    tries = [(file, local) for local in ((True, False) if download else (True,)) for file in names]
    reason = "--no-download"
    for file, local in tries:
        how: dict[str, Any] = {"revision": revision or None, "local_files_only": local}
        try:
            return Path(hub.hf_hub_download(name, file, **how))
        except Exception as error:  # of the hub's client, or of a library that it uses
            reason = reason if local else str(error).strip().partition("\n")[0][:200]
            absent = isinstance(error, hub_errors.EntryNotFoundError)
            offline = isinstance(error, hub_errors.LocalEntryNotFoundError)
            if not (local or (absent and not offline)):
                break  # no network, or no access
    beside = Path(name).parent
    siblings = [str(p) for p in beside.iterdir() if p.is_dir()] if beside.is_dir() else []
    near = f"{hint}; or " if (hint := did_you_mean(name, siblings)) else ""
    other = "name a folder: --model hf:FOLDER" if model[:3] == "hf:" else "--weights FILE or none"
    what = f"The files of {model} are not here and could not be fetched."
    where = f"{repository}: {' or '.join(names)}"
    advice = f"{near}connect to a network and try again, or {other}"
    raise WeightsError(what, where=where, got=reason, next_step=advice)


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a weights file into a plain state dict on the CPU, floating-point values as float32.

    The prefix ``module.``, which torch's DataParallel adds to every name, is removed.
    """
    content = _read(path)
    strangers = [type(content).__name__]
    if isinstance(content, Mapping):
        wrapped = (content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping))
        content = next(wrapped, content)
        strangers = [
            f"{key!r} ({type(value).__name__})"
            for key, value in content.items()
            if not (isinstance(key, str) and isinstance(value, Tensor))
        ]
    if strangers or not content:
        what = "The weights file holds no state dict."
        expected = f"names and tensors, or those within one of {', '.join(_WRAPPERS)}"
        raise WeightsError(what, where=path, expected=expected, got=_first(strangers) or "nothing")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    state = {}
    for name, value in content.items():
        # The sum takes a tenth of the time of checking each number.
        if value.is_floating_point() and not value.sum(dtype=torch.float64).isfinite():
            what = "The weights file holds values that are not finite."
            raise WeightsError(what, where=path, got=name)
        state[name.removeprefix(prefix)] = value.float() if value.is_floating_point() else value
    return state


def _read(path: Path) -> Any:
    if path.suffix not in WEIGHTS_SUFFIXES:
        what = "Weights are not read from files with this suffix."
        expected = ", ".join(WEIGHTS_SUFFIXES)
        raise WeightsError(what, where=path, expected=expected, got=path.suffix or "no suffix")
    safe = path.suffix == ".safetensors"
    try:
        # Never a full unpickle, which would run any code in the file.
        if safe:
            return load_file(path)
        with open_regular(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of a format that is refused anyway
            return torch.load(stream, "cpu", weights_only=True)
    except Exception as error:  # a foreign file may make the parsers raise anything
        pickled = isinstance(error, pickle.UnpicklingError)
        stranger = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error)) if pickled else None
        wanted = "a state dict: names and tensors" if stranger else None
        if stranger:
            what = "The weights file holds more than tensors; loading it could run foreign code, so"
            what += " featpipe does not."
            got = f"the Python object {stranger[1]}"
            advice = "if you trust its author, load it where it was made, save model.state_dict()"
            advice += " with safetensors.torch.save_file, and use that file"
        else:
            kind = "safetensors" if safe else "PyTorch"
            what = f"The weights file is empty, damaged, cut off, or no {kind} file at all."
            # Without torch's own text, which advises to load without weights_only.
            reason = "" if pickled else f" ({str(error)[:120]})"
            got = f"{path.stat().st_size} bytes{reason}"
            advice = "fetch or copy the file again and compare its size"
        raise WeightsError(what, where=path, expected=wanted, got=got, next_step=advice) from None


def load_network(architecture: Architecture, path: Path) -> nn.Module:
    """Return the network with the weights of a file, whose names and shapes must match exactly.

    Only the number of outputs is that of the file: it may be trained on another task.
    """
    state = load_state_dict(path)
    last = state.get(f"{architecture.classifier}.weight")
    num_classes = len(last) if last is not None and last.ndim > 1 else 0
    # On the meta device, then with the file's tensors: no random initialisation is computed.
    network = architecture.on_meta(num_classes or 1)
    own = network.state_dict()
    expected, got = (
        {name: tuple(value.shape) for name, value in s.items() if not name.endswith(_COUNTER)}
        for s in (own, state)
    )
    problems = {
        "missing": [name for name in expected if name not in got],
        "unexpected": [name for name in got if name not in expected],
        "wrong shape": [
            f"{name} {got[name]} instead of {shape}"
            for name, shape in expected.items()
            if got.get(name, shape) != shape
        ],
    }
    if any(problems.values()):
        what = f"These weights are not for {architecture.name}."
        listed = "; ".join(f"{len(n)} {kind}: {_first(n)}" for kind, n in problems.items() if n)
        raise WeightsError(what, where=path, expected=f"{len(expected)} tensors", got=listed)
    if any(name not in own for name, _ in network.named_buffers()):
        network = architecture.build(num_classes or 1).eval()  # computes buffers that no file has
    counters = {name: torch.tensor(0) for name in own if name.endswith(_COUNTER)}
    network.load_state_dict(counters | state, assign=True)
    return network


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of tensors with their names, types and shapes."""
    blocks: list[Any] = []
    for name, value in sorted(state.items()):
        blocks.append(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        blocks.append(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return of_bytes(*blocks)


def _first(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
