"""A trained probe with its backbone and preprocessing as one ONNX graph, and what goes with it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from featpipe.backbones.base import Backbone
from featpipe.errors import FeatpipeError, ResultError, UsageError
from featpipe.evaluation.classifier import LEAST, SoftmaxClassifier, linear_form
from featpipe.evaluation.models import TrainedModel
from featpipe.evaluation.result import Result
from featpipe.lazy import Lazy, check_installed
from featpipe.prediction import Predictor, open_predictor
from featpipe.workspace import Workspace, atomic_write, refuse_foreign

onnx, onnxruntime = Lazy("onnx"), Lazy("onnxruntime")

_MARK = "written by featpipe export"
_TOLERANCE = 1e-4  # of a probability


def export_onnx(
    workspace: Workspace, name: str, out: Path, weights: str | None = None, *, force: bool = False
) -> list[Path]:
    """Write a probe as ``out`` (.onnx), with a model card (.md) and a script (.py) beside it.

    The graph takes ``images``, uint8 (n, S, S, 3) in RGB, and gives what ``featpipe predict`` does:
    ``probabilities``, float32 (n, classes), and ``labels``, int64 (n,), numbers of classes, whose
    names are in its metadata. ``force`` replaces files that featpipe did not write, too; the other
    arguments are those of :func:`featpipe.prediction.open_predictor`.

    Raises
    ------
    UsageError
        If the classifier is not linear, its probabilities are not calibrated, or the network does
        not take uint8 images in float32.
    ResultError
        If there is no such model, or no result that says how good it is.
    """
    for package in ("onnx", "onnxruntime", "onnxscript"):
        check_installed(package, "onnx")
    if out.suffix != ".onnx":
        raise UsageError(f"Cannot write to {out.name!r}.", expected="a name in .onnx")
    paths = [out.with_suffix(suffix) for suffix in (".onnx", ".md", ".py")]
    for path in paths:
        refuse_foreign(path, _MARK.encode(), force=force)
    predictor = open_predictor(workspace, name, weights, "cpu", "torch")
    if predictor.probe is None:
        raise _refused("a fine-tuned network")
    path, model, backbone = predictor.probe
    if not (file := workspace.results / f"{path.stem}.json").is_file():
        what = "There is no result that says how good the model is."
        raise ResultError(what, where=file, next_step="name one of featpipe results")
    result, prepared = Result.load(file), backbone.preprocessing
    if prepared.dtype != torch.uint8 or backbone.how.precision != "float32":
        raise _refused(f"a network in {backbone.how.precision} on images of {prepared.dtype}")
    graph = _Graph(backbone, model).eval()
    with atomic_write(out) as temporary:
        _write(graph, temporary, prepared.crop, model.classes)
        _compare(temporary, predictor)
    resize = prepared.crop if prepared.fit in ("fill", "whole") else prepared.resize
    how = {"fit": prepared.fit, "resize": resize, "crop": prepared.crop}
    script = _SCRIPT.format(mark=_MARK, filter=prepared.interpolation.upper(), **how)
    for path, text in zip(paths[1:], (_card(result, model, out.name), script), strict=True):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def _refused(got: object) -> UsageError:
    what = "This model cannot be exported."
    expected = "a linear classifier with calibrated probabilities, on features in float32"
    advice = "export the model of featpipe svm, logistic or centroid"
    return UsageError(what, expected=expected, got=got, next_step=advice)


class _Graph(nn.Module):
    """Prepared images (n, S, S, 3), uint8 → probabilities (n, classes) and labels (n,), int64."""

    def __init__(self, backbone: Backbone, model: TrainedModel) -> None:
        super().__init__()
        self.network = copy.deepcopy(backbone.network)
        self._prepared = backbone.preprocessing
        self._capture = backbone.capture(model.layer)
        linear = linear_form(model.estimator)
        self._graded = isinstance(linear, SoftmaxClassifier)
        if linear is None or not (model.temperature or self._graded):
            raise _refused(f"{model.title} without linear scores or without calibration")
        self._unit = linear.unit
        self._temperature = model.temperature or 1.0
        places = np.eye(len(model.classes))[linear.classes_]  # classes without training rows: 0
        numbers = {"weight": linear.weight, "bias": linear.bias, "places": places}
        for name, values in numbers.items():
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))
        self.register_buffer("known", torch.as_tensor(linear.classes_))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []  # torch.export follows no exception, which ends `activations`
        module, read = self.network.get_submodule(self._capture.module), self._capture.read
        hook = module.register_forward_hook(lambda _, given, made: kept.append(read(given, made)))
        self.network(self._prepared.normalise(images.permute(0, 3, 1, 2)))
        hook.remove()
        x = kept[-1].flatten(1)
        if self._unit:
            length = x.norm(dim=1, keepdim=True)
            x = x / torch.where(length == 0, torch.ones_like(length), length)
        scores = x @ self.weight + self.bias  # type: ignore[operator]
        labels = self.known[scores.argmax(1)]  # type: ignore[index]
        if self._graded:
            scores = scores.softmax(1).clamp(min=LEAST).log()
        return (scores / self._temperature).softmax(1) @ self.places, labels  # type: ignore[operator]


def _write(graph: nn.Module, path: Path, side: int, classes: tuple[str, ...]) -> None:
    try:
        with torch.no_grad():
            torch.onnx.export(
                graph,
                (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
                str(path),
                input_names=["images"],
                output_names=["probabilities", "labels"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                external_data=False,
                verbose=False,
                dynamo=True,  # the older exporter lacks the attention of torchvision's ViTs
            )
    except Exception as error:  # whatever a network does that ONNX cannot express
        what = f"PyTorch cannot export this network: {type(error).__name__}"
        raise FeatpipeError(what, got=str(error).partition("\n")[0][:300]) from error
    made = onnx.load(str(path))
    made.doc_string = _MARK
    onnx.helper.set_model_props(made, {"classes": json.dumps(classes), "featpipe": _MARK})
    onnx.save(made, str(path))


def _compare(path: Path, predictor: Predictor) -> None:
    """Refuse a graph whose probabilities are not those of PyTorch and scikit-learn."""
    side = predictor.preprocessing.crop
    images = np.random.default_rng(0).integers(0, 256, (8, side, side, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found, _ = session.run(None, {"images": images})
    ours = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    _, scores, probabilities = predictor.classify(ours)
    expected = scores if probabilities is None else probabilities
    error = float(np.abs(found - expected).max())
    if not error <= _TOLERANCE:
        what = "The exported graph gives other probabilities than featpipe predict."
        raise FeatpipeError(what, expected=f"within {_TOLERANCE:g}", got=f"{error:.2g}")


_SCRIPT = '''"""Classify image files, 8 bits a channel: python FILE.py photo.jpg …

Needs onnxruntime and Pillow. This file was {mark}.
"""

import json
import sys

try:
    import numpy as np
    import onnxruntime
    from PIL import Image, ImageOps
except ImportError as error:
    sys.exit(f"{{error}}\\n  next: pip install onnxruntime pillow")

FIT, RESIZE, CROP = {fit!r}, {resize}, {crop}


def centre(image, width, height):
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def prepare(path):
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    size = (RESIZE, RESIZE)
    if FIT != "whole":
        longest = 8 * min(image.size)
        image = centre(image, *(min(length, longest) for length in image.size))
        if FIT != "squash":
            size = tuple(RESIZE * length // min(image.size) for length in image.size)
    return np.asarray(centre(image.resize(size, Image.Resampling.{filter}), CROP, CROP))


if len(sys.argv) < 2:
    sys.exit(f"usage: python {{sys.argv[0]}} photo.jpg …")
model, unread = __file__.removesuffix(".py") + ".onnx", 0
try:
    session = onnxruntime.InferenceSession(model)
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
except Exception as error:  # a missing or damaged file
    sys.exit(f"The model cannot be opened; it has to be beside this script.\\n  got: {{error}}")
for path in sys.argv[1:]:
    try:
        image = prepare(path)
    except Exception as error:  # whatever Pillow raises for a missing or damaged file
        print(f"{{path}} cannot be read: {{error}}", file=sys.stderr)
        unread += 1
        continue
    (shares,), (label,) = session.run(None, {{"images": image[None]}})
    print(path, classes[label], f"{{shares[label]:.4f}}", sep="\\t")
sys.exit(1 if unread else 0)
'''


def _card(result: Result, model: TrainedModel, name: str) -> str:
    """Return a model card: what the model is, how accurate, on which images, and its limits."""
    trained, metrics = result.splits[0], result.summary["metrics"]
    dataset, backbone = result.stores[0]["manifest"]["dataset"], model.backbone
    value, low, high = (100 * result.summary["accuracy"][k] for k in ("value", "low", "high"))
    n, side = result.protocol["splits"], backbone["preprocessing"]["crop"]
    facts = {
        "Classifier": f"{result.title}, {json.dumps(trained.get('chosen'), ensure_ascii=False)}",
        "Backbone": f"{backbone['model']}, layer {model.layer}, frozen",
        "Weights": f"{backbone['weights']['name']}, SHA-256 {backbone['weights']['sha256']}",
        "Input": f"uint8 (n, {side}, {side}, 3), RGB, made of files as the script beside it does",
        "Preprocessing": json.dumps(backbone["preprocessing"]),
        "Trained on": f"{dataset['name']}, {trained['n_train']} images ({trained['name']})",
        "Protocol": f"{result.protocol['name']}: {n} trained model(s), {metrics['n']} answers on "
        f"{result.dataset['test']['images']} images of {result.dataset['test']['split']}",
        "Accuracy": f"{value:.2f} %, 95 % interval {low:.2f}–{high:.2f}; balanced "
        f"{100 * metrics['balanced_accuracy']:.2f} %",
        "Result": f"{result.name}, {result.created}, `{result.command}`",
    }
    rows = result.extra.get("calibration", {}).get("rows")
    limits = [
        f"Every image gets one of these {len(model.classes)} classes, whatever it shows.",
        "The accuracy is an estimate for images like those tested, not for others.",
        f"Probabilities are calibrated on {rows} training images." if rows else "",
        f"The accuracy is that of {n} models, of which this is the first." if n > 1 else "",
        result.extra.get("contamination", ""),
        *result.notes,
    ]
    table = "\n".join(f"| {key} | {text.replace('|', '&#124;')} |" for key, text in facts.items())
    listed = "\n".join(f"- {limit}" for limit in limits if limit)
    return (
        f"# {name}\n\nThis card was {_MARK}.\n\n| | |\n| --- | --- |\n{table}\n\n"
        f"## Classes\n\n{', '.join(model.classes)}\n\n## Limits\n\n{listed}\n"
    )
