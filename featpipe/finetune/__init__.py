"""Train heads and networks: from a new last layer on frozen activations to training from scratch.

Names are known here without torch; see ``docs/finetuning.md``.
"""

from __future__ import annotations

from featpipe.backbones import MODELS
from featpipe.registry import OldRegistry

__all__ = ["AUGMENTATIONS", "HEADS", "LOSSES", "NETWORKS", "OPTIMIZERS", "SCHEDULES"]

NETWORKS = OldRegistry("network")
for _entry in MODELS:
    NETWORKS.add(_entry.name, _entry.target, _entry.summary, _entry.aliases)
for _name, _target, _summary in (
    ("resnet9", "resnet9:architecture", "ResNet-9 for 32 × 32 pixels, 6.6 million parameters"),
    ("resnet18_32", "resnet18_32:plain", "ResNet-18 for 32 × 32 pixels, 4 × 4 average pooling"),
    ("resnet18_32_max", "resnet18_32:plain_max", "the same with 4 × 4 maximum pooling"),
    ("resnet18_32_stem", "resnet18_32:stem", "2 × 2 average pooling after stem and at the end"),
    ("resnet18_32_stem_max", "resnet18_32:stem_max", "the same with maximum pooling"),
    ("convnet", "convnet:architecture", "a small convolutional net for 64 × 64 pixels"),
    ("timm", "timm_models:timm_stages", "timm:NAME, any model of timm (extra: timm)"),
):
    NETWORKS.add(_name, f"featpipe.finetune.networks.{_target}", f"untrained: {_summary}")

HEADS = OldRegistry("head")
HEADS.add("linear", "featpipe.finetune.head:linear", "one linear layer")
HEADS.add("mlp", "featpipe.finetune.head:mlp", "mlp:N, N hidden neurons (ReLU), then the classes")

OPTIMIZERS = OldRegistry("optimizer")
for _name, _class, _summary in (
    ("sgd", "SGD", "stochastic gradient descent: momentum, nesterov"),
    ("adam", "Adam", "Kingma and Ba 2014: betas, eps"),
    ("adamw", "AdamW", "Adam with decoupled weight decay: betas, eps"),
    ("nadam", "NAdam", "Adam with Nesterov momentum: betas, eps"),
    ("rmsprop", "RMSprop", "Hinton 2012: momentum, eps"),
):
    OPTIMIZERS.add(_name, f"torch.optim:{_class}", _summary)

SCHEDULES = OldRegistry("schedule")
for _name, _summary in (
    ("none", "the learning rate stays"),
    ("multistep", "multistep:80,120, divided by ten at the end of these epochs"),
    ("cosine", "half a cosine down to zero, epoch by epoch"),
    ("plateau", "plateau:N, divided by ten when N epochs brought no lower validation loss"),
    ("onecycle", "up to --lr and down again, batch by batch (Smith and Topin 2017)"),
):
    SCHEDULES.add(_name, f"featpipe.finetune.schedules:{_name}", _summary)

LOSSES = OldRegistry("loss")
LOSSES.add("cross-entropy", "torch.nn:CrossEntropyLoss", "always part of the loss")
LOSSES.add(
    "triplet", "featpipe.finetune.losses:triplet", "triplet:W, plus W × triplet (extra: metric)"
)
LOSSES.add("center", "featpipe.finetune.losses:CenterLoss", "center:W, plus W × center loss")

AUGMENTATIONS = OldRegistry("augmentation")
for _name, _summary in (
    ("crop", "crop:N, N pixels padded, then cut at a random place"),
    ("flip", "mirrored left to right, half of the time"),
    ("rotation", "rotation:D, turned by up to ±D degrees"),
    ("cutout", "cutout:N, a square of N × N pixels blanked (DeVries and Taylor 2017)"),
):
    AUGMENTATIONS.add(_name, f"featpipe.finetune.augment:{_name}", _summary)
