"""Any network of timm, by name: ``timm:resnetv2_50x1_bit``."""

from __future__ import annotations

from collections import OrderedDict
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from featpipe.backbones.preprocessing import Preprocessing
from featpipe.errors import MissingExtraError, UnknownNameError, UsageError, WeightsError
from featpipe.registry import did_you_mean


class _Pool(nn.Module):
    """What a Big Transfer network does between its last stage and its classifier."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x, pre_logits=True)


def timm_stages(name: str, *, pretrained: bool) -> tuple[nn.Sequential, int, Preprocessing]:
    """Build a network of timm as named stages.

    Big Transfer models (``resnetv2_*``) have the stages ``stem``, ``layer1`` … ``layer4`` and
    ``norm``; any other model is one stage, ``features``.

    Parameters
    ----------
    name : str
        As timm calls it.
    pretrained : bool
        Whether timm should fetch the published weights.

    Returns
    -------
    stages : nn.Sequential
        All but the classifier.
    n_features : int
        Width of what they give.
    preprocessing : Preprocessing

    Raises
    ------
    MissingExtraError
        If timm is not installed.
    UnknownNameError
        If timm has no such model.
    WeightsError
        If the weights cannot be fetched.
    """
    timm = _timm()
    if not name:
        raise UsageError("timm needs the name of a model.", expected="timm:resnetv2_50x1_bit")
    if not timm.is_model(name):
        raise UnknownNameError(
            f"timm has no model named {name!r}.",
            next_step=did_you_mean(name, timm.list_models()).strip() or None,
        )
    try:
        network = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # the hub's client raises its own and other libraries' errors
        raise WeightsError(
            f"The weights of {name} are not here and could not be fetched.",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            next_step="connect to a network, or train from scratch with --weights none",
        ) from None
    return _stages(network), int(network.head_hidden_size), _preprocessing(timm, network)


def _stages(network: Any) -> nn.Sequential:
    from timm.models.resnetv2 import ResNetV2  # noqa: PLC0415 - an extra

    if not isinstance(network, ResNetV2):
        return nn.Sequential(OrderedDict(features=network))
    layers = {f"layer{i}": stage for i, stage in enumerate(network.stages, start=1)}
    return nn.Sequential(
        OrderedDict(stem=network.stem, **layers, norm=network.norm, pool=_Pool(network.head))
    )


def _preprocessing(timm: ModuleType, network: nn.Module) -> Preprocessing:
    config = timm.data.resolve_model_data_config(network)
    side = config["input_size"][-1]
    return Preprocessing(
        resize=round(side / config["crop_pct"]),
        crop=side,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _timm() -> ModuleType:
    try:
        import timm  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError("timm", "timm") from None
    return timm
