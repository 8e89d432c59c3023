"""OpenVINO: the network as a graph that is converted once and cached; int8 by NNCF.

A converted network is stored in a folder of the user's cache, named by a hash of everything that it
was made from. Each time it is opened, its float32 numbers are compared with PyTorch's.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featpipe import fingerprint
from featpipe.backbones import RUNTIMES
from featpipe.backbones.runtime import (
    CannotRunError,
    Capture,
    CapturedNetwork,
    Runtime,
    activations,
)
from featpipe.errors import MissingExtraError
from featpipe.files import read_json
from featpipe.lazy import Lazy, check_installed
from featpipe.provenance import package_version
from featpipe.workspace import explain_os_errors, user_path

nncf = Lazy("nncf")

# Without telemetry, which would report conversions and wait for the internet connection at exit.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # not importable
try:
    import openvino
except ImportError:  # not on every platform
    openvino = None

_CONVERSION = 1  # raised when the graph of the same network changes
_SEAL = "sealed.json"  # written last: digests of the other files
_TOLERANCE = 1e-4  # maximum of ‖a − b‖ / ‖b‖ for each image; ResNet-50 has 4e-7
_ABANDONED_SECONDS = 86_400
_MOST_STREAMS = 16  # each needs memory for a batch; with more cores, a stream uses several
_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "f32"}


def cache_folder() -> Path:
    """Return the cache of converted networks, in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "featpipe" / "openvino"


@RUNTIMES.register
class OpenVinoRuntime(Runtime):
    """OpenVINO on the CPU, with parallel streams; docs/performance.md has the figures.

    float32 is requested explicitly, because OpenVINO may choose bfloat16 by itself.
    """

    name = "openvino"
    summary = "OpenVINO, on the CPU; also int8"
    exact = True
    precisions = tuple(_HINTS)

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        precision = self._how.precision
        if self.device.type != "cpu":
            what = "OpenVINO runs on the CPU."
            raise CannotRunError(what, expected="--device cpu", got=self.device)
        if openvino is None:
            raise MissingExtraError("openvino", "openvino")
        if precision == "int8":
            check_installed("nncf", "int8")
        self._core = openvino.Core()
        known = precisions_of(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        if precision not in known:
            what = f"This processor does not compute in {precision}."
            raise CannotRunError(what, expected=", ".join(known), got=f"--precision {precision}")
        self.batch_size = 8  # as fast as 32, with less waiting at the end
        self.parallel = min(torch.get_num_threads(), _MOST_STREAMS)
        self._requests: dict[tuple[Capture, ...], SimpleQueue[Any]] = {}
        self._lock = threading.Lock()

    def prepare(self, captures: Sequence[Capture]) -> None:
        """Load the network into OpenVINO; convert it unless it is cached."""
        if self.preprocessing.dtype != torch.uint8:
            raise CannotRunError("OpenVINO takes uint8 images here.", got="those of a transform")
        key, precision = tuple(captures), self._how.precision
        with self._lock:
            if key in self._requests:
                return
            try:
                model = self._cached(self._identity(captures), lambda: self._convert(captures))
                if precision == "int8":
                    model = self._quantised(model, captures)
                threads = torch.get_num_threads()
                hints = {"NUM_STREAMS": str(self.parallel), "INFERENCE_NUM_THREADS": str(threads)}
                hints["INFERENCE_PRECISION_HINT"] = _HINTS[precision]
                if threads < (os.cpu_count() or 1):
                    # Processes that share the cores would all be pinned to the first ones.
                    hints["ENABLE_CPU_PINNING"] = "NO"
                compiled = self._core.compile_model(model, "CPU", hints)
            except RuntimeError as error:
                raise _cannot(error) from error
            requests: SimpleQueue[Any] = SimpleQueue()
            for _ in range(self.parallel):
                requests.put(compiled.create_infer_request())
            self._requests[key] = requests
        if precision == "float32":
            self._compare(captures)

    def run(self, images: Tensor, captures: Sequence[Capture]) -> dict[str, NDArray[np.float32]]:
        """Return the activations of one batch; concurrent calls use a stream each."""
        self.prepare(captures)
        requests = self._requests[tuple(captures)]
        request = requests.get()
        try:
            request.infer({0: images.numpy()}, share_inputs=True)
            return {
                capture.layer: request.get_output_tensor(i).data.copy()
                for i, capture in enumerate(captures)
            }
        finally:
            requests.put(request)

    def _compare(self, captures: Sequence[Capture]) -> None:
        """Raise CannotRunError if the graph's numbers are not PyTorch's."""
        images = _noise(2, self.preprocessing.crop)
        with torch.inference_mode():
            expected = activations(self.network, self.preprocessing.normalise(images), captures)
        for layer, got in self.run(images, captures).items():
            wanted = expected[layer].numpy().reshape(2, -1)
            apart = np.linalg.norm(got.reshape(2, -1) - wanted, axis=1)
            relative = float((apart / np.maximum(np.linalg.norm(wanted, axis=1), 1e-30)).max())
            if not relative <= _TOLERANCE:  # not-a-number is refused, too
                what = f"OpenVINO and PyTorch disagree at the layer {layer}."
                bound, advice = f"‖a − b‖ / ‖b‖ of at most {_TOLERANCE:g}", "--runtime torch"
                raise CannotRunError(what, expected=bound, got=f"{relative:.1g}", next_step=advice)

    def _convert(self, captures: Sequence[Capture]) -> Any:
        self._how.progress.note("converting the network for OpenVINO, once")
        graph = CapturedNetwork(self.network, captures, self.preprocessing.normalise).eval()
        images = _noise(2, self.preprocessing.crop)
        attention = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # OpenVINO has no operator for it
        try:
            with torch.inference_mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tracing, about constants
                model = openvino.convert_model(graph, example_input=images)
                model.reshape({0: [-1, *images.shape[1:]]})
                return model
        except Exception as error:  # a forward pass may raise anything when it is traced
            raise _cannot(error) from error
        finally:
            torch.backends.mha.set_fastpath_enabled(attention)

    def _identity(self, captures: Sequence[Capture]) -> dict[str, Any]:
        tensors = self.network.state_dict()
        names = [f"{n} {t.dtype} {tuple(t.shape)}" for n, t in tensors.items()]
        arrays = [np.ascontiguousarray(t.detach().numpy()).data for t in tensors.values()]
        return {
            "conversion": _CONVERSION,
            "network": [repr(self.network), names, fingerprint.of_bytes(*arrays)],
            "captures": [asdict(capture) for capture in captures],
            "preprocessing": self.preprocessing.as_dict(),
            "versions": [package_version(name) for name in ("openvino", "torch")],
        }

    def _quantised(self, model: Any, captures: Sequence[Capture]) -> Any:
        """Return the network in int8: post-training quantisation by NNCF."""
        seen = self._how.calibration
        assert seen is not None
        fitted = {"calibration": seen.fingerprint, "nncf": package_version("nncf")}

        def quantise() -> Any:
            nncf.set_log_level(logging.ERROR)
            images = seen.images(self.preprocessing)
            self._how.progress.note(f"fitting int8 to {len(images)} training images, once")
            data = nncf.Dataset([image[None].numpy() for image in images])
            attends = any(isinstance(m, nn.MultiheadAttention) for m in self.network.modules())
            kind = nncf.ModelType.TRANSFORMER if attends else None
            with redirect_stdout(io.StringIO()):  # hides its progress bars
                return nncf.quantize(model, data, model_type=kind, subset_size=len(images))

        return self._cached(self._identity(captures) | fitted, quantise)

    def _cached(self, identity: dict[str, Any], make: Callable[[], Any]) -> Any:
        """Return a converted network from the cache; make it if it is missing or damaged.

        Its folder is renamed when its files and their digests are on the disk.
        """
        folder = (self._how.cache or cache_folder()) / fingerprint.of_mapping(identity)[:32]
        if _is_whole(folder):
            return self._core.read_model(folder / "model.xml")
        model = make()
        with explain_os_errors(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            for old in folder.parent.glob(".*.tmp"):  # of killed conversions
                if time.time() - old.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
            with TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder.parent) as name:
                temporary = Path(name)
                openvino.save_model(model, temporary / "model.xml", compress_to_fp16=False)
                digests = {file.name: fingerprint.of_file(file) for file in temporary.iterdir()}
                (temporary / _SEAL).write_text(json.dumps(digests), "utf-8")
                for file in temporary.iterdir():
                    with file.open("rb+") as stream:
                        os.fsync(stream.fileno())
                if not _is_whole(folder):  # unless another process has made it in the meantime
                    shutil.rmtree(folder, ignore_errors=True)
                    temporary.rename(folder)
        return self._core.read_model(folder / "model.xml")


def precisions_of(capabilities: Sequence[str]) -> list[str]:
    """Return the precisions that a processor supports, given OpenVINO's list of capabilities."""
    needed = {"bfloat16": "BF16", "float16": "FP16"}
    return [one for one in _HINTS if one not in needed or needed[one] in capabilities]


def _noise(n: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def _cannot(error: Exception) -> CannotRunError:
    last = str(error).strip().rpartition("\n")[2].strip()[:200]
    got = f"{type(error).__name__}: {last}"
    return CannotRunError("OpenVINO cannot run this network.", got=got, next_step="--runtime torch")


def _is_whole(folder: Path) -> bool:
    with suppress(OSError, ValueError, AttributeError):
        digests = read_json(folder / _SEAL)
        return all(fingerprint.of_file(folder / name) == d for name, d in digests.items())
    return False
