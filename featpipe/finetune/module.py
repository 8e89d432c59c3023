"""What is trained: the part of a network behind the frozen boundary, with its head."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featpipe.backbones.preprocessing import Preprocessing
from featpipe.finetune.head import Head, make_head
from featpipe.finetune.stages import Cut, part
from featpipe.finetune.trunk import Trunk


class Normalise(nn.Module):
    """Turns uint8 images into what the network was made for; leaves activations as they are."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` as float32."""
        return self.preprocessing.normalise(x) if x.dtype == torch.uint8 else x.float()


class HeadedNetwork(nn.Module):
    """Frozen stages, stages that learn, and the head.

    Parameters
    ----------
    normalise : Normalise
    frozen : nn.Sequential
        Stages that never change and are run without gradients; empty where their activations
        come from a store.
    body : nn.Sequential
        Stages behind the boundary.
    head : Head
    passed : tuple of str
        Stages of the body that only pass the gradient on.
    freeze_statistics : bool
        Whether batch norms keep the running statistics they came with.

    Notes
    -----
    ``forward`` gives logits and the features in front of the last layer.
    """

    def __init__(
        self,
        normalise: Normalise,
        frozen: nn.Sequential,
        body: nn.Sequential,
        head: Head,
        *,
        passed: tuple[str, ...] = (),
        freeze_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.frozen = frozen.requires_grad_(False)
        self.body = body.requires_grad_(True)
        self.head = head
        self.passed = passed
        self.freeze_statistics = freeze_statistics
        for name in passed:
            body.get_submodule(name).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> HeadedNetwork:
        """Set training mode, but for what is frozen."""
        super().train(mode)
        self.frozen.eval()
        for name in self.passed:
            self.body.get_submodule(name).eval()
        if self.freeze_statistics:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes) and features (n, d) of images or stored activations."""
        x = self.normalise(x)
        with torch.no_grad():
            x = self.frozen(x)
        return self.head(self.body(x))

    def trained_state(self) -> dict[str, Tensor]:
        """Return what distinguishes this network from the one it started from: body and head."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if name.startswith(("body.", "head."))
        }

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Take over body and head."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        wrong = [name for name in missing if not name.startswith("frozen.")] + unexpected
        if wrong:
            raise ValueError(f"not the state of this network: {', '.join(wrong[:3])}")


@dataclass(frozen=True, eq=False)
class NetworkFactory:
    """Makes the network that an estimator trains: each call the same one, anew.

    Parameters
    ----------
    trunk : Trunk
    cut : Cut
    head : str
        ``"linear"`` or ``"mlp:50"``.
    n_classes : int
    seed : int
    from_store : bool
        Whether the frozen stages were run beforehand.
    freeze_statistics : bool
    """

    trunk: Trunk
    cut: Cut
    head: str
    n_classes: int
    seed: int = 0
    from_store: bool = True
    freeze_statistics: bool = False

    def __call__(self) -> HeadedNetwork:
        """Return a fresh network."""
        head = make_head(
            self.head, self.trunk.n_features, self.n_classes, bias=self.trunk.bias, seed=self.seed
        )
        body = copy.deepcopy(part(self.trunk.stages, self.cut.trained + self.cut.passed))
        return HeadedNetwork(
            Normalise(self.trunk.preprocessing),
            nn.Sequential() if self.from_store else part(self.trunk.stages, self.cut.frozen),
            body,
            head,
            passed=self.cut.passed,
            freeze_statistics=self.freeze_statistics,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> NetworkFactory:
        # scikit-learn's clone copies parameters; nothing here ever changes, so it can be shared.
        return self


def count_parameters(module: nn.Module) -> dict[str, int]:
    """Return how many numbers a network learns, keeps frozen, and counts along the way.

    Returns
    -------
    counts : dict
        ``trained``; ``frozen``; ``running_statistics`` of batch norms, which Keras counts as
        non-trainable parameters.
    """
    parameters = list(module.parameters())
    return {
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "frozen": sum(p.numel() for p in parameters if not p.requires_grad),
        "running_statistics": sum(
            buffer.numel()
            for name, buffer in module.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        ),
    }
