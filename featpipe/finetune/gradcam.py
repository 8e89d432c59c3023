"""Grad-CAM: where in an image a network saw a class."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featpipe.errors import MissingExtraError, UnknownNameError, UsageError
from featpipe.finetune.saved import TrainedHead
from featpipe.registry import did_you_mean

# Colours of the heat map: cold places are blue, hot ones red.
_STOPS = np.array([0.0, 0.35, 0.65, 1.0])
_COLOURS = np.array([[0, 0, 255], [0, 220, 220], [255, 220, 0], [255, 0, 0]], dtype=float)


def choose_layer(head: TrainedHead, name: str | None) -> str:
    """Return the layer to look at: the one named, or the last stage that gives maps.

    Raises
    ------
    UnknownNameError
        If the network has no such layer.
    UsageError
        If the layer gives no maps.
    """
    stages, side = head.trunk.stages, head.trunk.preprocessing.crop
    shapes: dict[str, int] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _i, output, name=known: shapes.__setitem__(name, output.ndim)
        )
        for known, module in stages.named_modules()
        if known
    ]
    image = torch.zeros(1, 3, side, side, device=head.trunk.device)
    with torch.inference_mode():
        stages(image)
    for handle in handles:
        handle.remove()
    main = [known for known, _ in stages.named_children() if shapes.get(known) == 4]
    able = [known for known in main if any(True for _ in stages.get_submodule(known).parameters())]
    if name is None:
        return able[-1]
    if name not in shapes:
        raise UnknownNameError(
            f"{head.trunk.name} has no layer named {name!r}.",
            expected=", ".join(able) + ", or a module within one of them",
            next_step=did_you_mean(name, shapes).strip() or None,
        )
    if shapes[name] != 4:
        raise UsageError(
            f"The layer {name!r} gives no maps that could be laid over an image.",
            expected=", ".join(able),
        )
    return name


class _Logits(nn.Module):
    """The whole network as Grad-CAM needs it: one output, gradients everywhere."""

    def __init__(self, head: TrainedHead) -> None:
        super().__init__()
        network = head.network
        self.stages = nn.Sequential(*network.frozen, *network.body)
        self.named = {**dict(network.frozen.named_modules()), **dict(network.body.named_modules())}
        self.head = network.head
        for module in self.modules():
            if isinstance(module, nn.ReLU):  # it would overwrite what the hooks keep
                module.inplace = False

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(x))[0]
        return logits


def grad_cam(
    head: TrainedHead, layer: str, images: Tensor, classes: list[int]
) -> NDArray[np.float32]:
    """Return where a class was seen, by Grad-CAM.

    Parameters
    ----------
    head : TrainedHead
    layer : str
        Whose maps are weighted by their mean gradient.
    images : Tensor of shape (n, 3, S, S), uint8
        Prepared.
    classes : list of int
        The class that each map is for.

    Returns
    -------
    heat : ndarray of shape (n, S, S), float32
        0 to 1 for each image.

    Raises
    ------
    MissingExtraError
        If captum is not installed.

    References
    ----------
    Selvaraju et al.: Grad-CAM, arXiv:1610.02391.
    """
    try:
        from captum.attr import LayerGradCam  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError("captum", "explain") from None
    network = _Logits(head).eval()
    # Frozen parameters have no gradients; the image must, so that they reach every layer.
    x = head.trunk.preprocessing.normalise(images.to(head.trunk.device)).requires_grad_(True)
    target = torch.tensor(classes, device=x.device)
    heat = LayerGradCam(network, network.named[layer]).attribute(
        x, target=target, relu_attributions=True
    )
    heat = functional.interpolate(
        heat.detach().float(), size=images.shape[-2:], mode="bilinear", align_corners=False
    )[:, 0]
    highest = heat.amax(dim=(1, 2), keepdim=True)
    scaled: NDArray[np.float32] = (heat / highest.clamp_min(1e-12)).cpu().numpy()
    return scaled


def overlay(
    image: NDArray[np.uint8], heat: NDArray[np.float32], strength: float
) -> NDArray[np.uint8]:
    """Lay a heat map over an image.

    Parameters
    ----------
    image : ndarray of shape (height, width, 3), uint8
    heat : ndarray of shape (height, width), float32
        0 to 1.
    strength : float
        Opacity where the heat is 1; where it is 0 the image stays as it is.

    Examples
    --------
    >>> grey = np.full((1, 2, 3), 100, np.uint8)
    >>> overlay(grey, np.array([[0.0, 1.0]], np.float32), 0.5).tolist()
    [[[100, 100, 100], [178, 50, 50]]]
    """
    colour = np.stack([np.interp(heat, _STOPS, _COLOURS[:, i]) for i in range(3)], axis=-1)
    opacity = strength * heat[..., None]
    return np.rint(image * (1 - opacity) + colour * opacity).astype(np.uint8)
