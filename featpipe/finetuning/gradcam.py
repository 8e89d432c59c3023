"""Grad-CAM: where in an image a network saw a class, shown for the images it got wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from captum.attr import LayerGradCam  # an extra: the step has looked whether it is there
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from featpipe.backbones.base import layer_shapes
from featpipe.datasets.dataset import SourceRequest
from featpipe.errors import ResultError, UnknownNameError, UsageError
from featpipe.evaluation.result import PredictionTable, Result, find_results
from featpipe.finetuning.explain import Explain, ExplainedImage, Explanation
from featpipe.finetuning.nets import map_stages
from featpipe.finetuning.saved import TrainedHead, load_head
from featpipe.fingerprint import of_mapping
from featpipe.steps import STEPS, Context, Outcome
from featpipe.workspace import atomic_write

_BATCH = 8
_STOPS = (0.0, 0.35, 0.65, 1.0)  # of the heat map's colours: blue, cyan, yellow, red
_COLOURS = np.array([[0, 0, 255], [0, 220, 220], [255, 220, 0], [255, 0, 0]], dtype=float)


def check_layer(head: TrainedHead, name: str) -> None:
    """Refuse a layer that the network does not have, or that gives no maps."""
    shapes = layer_shapes(head.trunk.stages, head.trunk.preprocessing.crop)
    able = ", ".join(map_stages(head.trunk))
    if name not in shapes:
        what = f"{head.trunk.name} has no layer named {name!r}."
        expected = f"{able}, or a module within one of them"
        raise UnknownNameError(what, name, shapes, expected=expected)
    if len(shapes[name][-1]) != 3:
        what = f"The layer {name!r} gives no maps that could be laid over an image."
        raise UsageError(what, expected=able)


def grad_cam(
    head: TrainedHead, layer: str, images: Tensor, classes: list[int]
) -> NDArray[np.float32]:
    """Return heat maps (n, S, S), 0 to 1, of a class in each prepared image (n, 3, S, S), uint8.

    The layer's maps are weighted by their mean gradient: Selvaraju et al., arXiv:1610.02391.
    """
    network = head.network
    for module in network.modules():
        if isinstance(module, nn.ReLU):  # in place, it would overwrite what the hooks keep
            module.inplace = False
    named = dict([*network.frozen.named_modules(), *network.body.named_modules()])

    def logits(x: Tensor) -> Tensor:  # with gradients everywhere
        return network.head(network.body(network.frozen(x)))[0]

    # Frozen parameters have no gradients; the image must, so that they reach every layer.
    x = head.trunk.preprocessing.normalise(images.to(head.trunk.device)).requires_grad_(True)
    target = torch.tensor(classes, device=x.device)
    heat = LayerGradCam(logits, named[layer]).attribute(x, target=target, relu_attributions=True)
    heat = functional.interpolate(heat.detach().float(), images.shape[-2:], mode="bilinear")[:, 0]
    scaled: NDArray[np.float32] = (heat / heat.amax((1, 2), True).clamp_min(1e-12)).cpu().numpy()
    return scaled


def overlay(
    image: NDArray[np.uint8], heat: NDArray[np.float32], strength: float
) -> NDArray[np.uint8]:
    """Lay a heat map (h, w), 0 to 1, over an image (h, w, 3); opacity is ``strength * heat``.

    Examples
    --------
    >>> grey = np.full((1, 2, 3), 100, np.uint8)
    >>> overlay(grey, np.array([[0.0, 1.0]], np.float32), 0.5).tolist()
    [[[100, 100, 100], [178, 50, 50]]]
    """
    colour = np.stack([np.interp(heat, _STOPS, _COLOURS[:, i]) for i in range(3)], axis=-1)
    opacity = strength * heat[..., None]
    return np.rint(image * (1 - opacity) + colour * opacity).astype(np.uint8)


def confident_mistakes(
    table: PredictionTable, classes: tuple[str, ...], limit: int
) -> tuple[ExplainedImage, ...]:
    """Return the mistakes of the first model, the most confident ones first."""
    first = table.only_splits([0])
    assert first.scores is not None
    confidence, ids = first.scores.max(axis=1), first.ids[first.row]
    wrong = np.flatnonzero(~first.correct)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:limit]
    return tuple(
        ExplainedImage(
            id=str(ids[i]),
            file=f"{of_mapping(str(ids[i]))[:12]}.png",  # an id may hold any character
            true=classes[first.true[first.row[i]]],
            predicted=classes[first.predicted[i]],
            confidence=round(float(confidence[i]), 6),
        )
        for i in order
    )


def run_explain(step: Explain, context: Context) -> Outcome:
    """Write a picture of each mistake, and the file that describes them, unless they exist."""
    result = find_results(context.workspace.results, [step.result])[0]
    assert result.path is not None
    if result.method not in STEPS or "network" not in STEPS.get(result.method).makes:
        what = "Heat maps need a network that was trained by featpipe finetune."
        got = f"a result of {result.method!r}"
        raise ResultError(what, where=result.path, got=got, next_step="featpipe results")
    layer, folder = step.place(result.path, result.key, result.extra)
    explanation, status = Explanation.read(folder), "up to date"
    if explanation is None:
        shutil.rmtree(folder, ignore_errors=True)  # pictures of an interrupted run
        explanation, status = _explain(step, context, result, folder, layer), "done"
    n = len(explanation.items)
    message = f"{status}: {n} mistakes explained at {layer}\n  → {folder}"
    return Outcome(status, message, (folder, result.path), {"layer": layer, "images": n})


def _explain(
    step: Explain, context: Context, result: Result, folder: Path, layer: str
) -> Explanation:
    """Open network and test images of a result again, and write a picture of each mistake."""
    classes = tuple(result.dataset["classes"])
    model = context.workspace.models / result.files["model"]
    result.check_file("model", model)
    head = load_head(model, weights=step.weights, device=step.device)
    check_layer(head, layer)
    mistakes = confident_mistakes(result.predictions(), classes, step.limit)
    store = result.stores[-1]
    images = store["manifest"]["dataset"]
    request = SourceRequest.from_dict(store["run"]["source"]).moved(step.data)
    source = request.open(images["split"], request.options(context))
    if source.fingerprint != images["fingerprint"]:
        what = "The images are not those that the result was made from."
        raise ResultError(what, where=result.path, next_step="featpipe finetune … --force")
    row_of = {name: row for row, name in enumerate(source.ids)}
    prepared, side = head.trunk.preprocessing, head.trunk.preprocessing.decoded_side
    with context.progress.task(f"Grad-CAM at {layer}", len(mistakes)) as task:
        for start in range(0, len(mistakes), _BATCH):
            some = mistakes[start : start + _BATCH]
            pixels = [source.read_scaled(row_of[one.id], side) for one in some]
            batch = torch.stack([prepared.prepare(image) for image in pixels])
            maps = grad_cam(head, layer, batch, [classes.index(one.predicted) for one in some])
            for one, image, heat in zip(some, batch, maps, strict=True):
                picture = overlay(image.permute(1, 2, 0).numpy(), heat, step.strength)
                with atomic_write(folder / one.file) as temporary:
                    Image.fromarray(picture).save(temporary, format="PNG")
                task.advance()
    explanation = Explanation(folder, layer, step.strength, "Grad-CAM", mistakes)
    explanation.write()
    return explanation
