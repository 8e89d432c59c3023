"""Options that take an argument: ``mlp:50``, ``multistep:80,120``, ``center:0.1``, ``crop:4``.

They are read here, without torch, so that a command line or a recipe refuses what is wrong before
anything is computed. All raise :class:`UnknownNameError` for an unknown name, and
:class:`UsageError` for an argument that is missing or not possible.
"""

from __future__ import annotations

import math

from featpipe.errors import UnknownNameError, UsageError
from featpipe.steps.grammar import number

# Each optimizer with its class in torch.optim, and the options that only some of them have.
OPTIMIZERS = {
    "sgd": ("SGD", {"momentum", "nesterov"}),
    "adam": ("Adam", {"betas", "eps"}),
    "adamw": ("AdamW", {"betas", "eps"}),
    "nadam": ("NAdam", {"betas", "eps"}),
    "rmsprop": ("RMSprop", {"momentum", "eps"}),
}
CROSS_ENTROPY = "cross-entropy"

_MOST_NEURONS = 65_536


def head(text: str) -> tuple[str, int]:
    """Read a head, as its name and its hidden neurons.

    Examples
    --------
    >>> head("mlp:50"), head("linear")
    (('mlp', 50), ('linear', 0))
    """
    name, argument = _split(text, "head", plain=("linear",), others=("mlp",))
    if name == "linear":
        return name, 0
    neurons = number(argument, whole=True)
    if not 1 <= neurons <= _MOST_NEURONS:
        raise UsageError(
            f"The head {name!r} needs its number of hidden neurons.",
            expected=f"{name}:50; at most {name}:{_MOST_NEURONS}",
            got=text,
        )
    return name, int(neurons)


def schedule(text: str) -> tuple[str, list[int]]:
    """Read a schedule, as its name and its numbers.

    Examples
    --------
    >>> schedule("multistep:80,120"), schedule("cosine"), schedule("plateau")
    (('multistep', [80, 120]), ('cosine', []), ('plateau', []))
    """
    plain, others = ("none", "cosine", "onecycle"), ("multistep", "plateau")
    name, argument = _split(text, "schedule", plain, others)
    numbers = [number(part.strip(), whole=True) for part in argument.split(",") if ":" in text]
    if name == "multistep":
        right = bool(numbers) and sorted(set(numbers)) == numbers and numbers[0] > 0
        needed, example = "needs ascending epochs", "multistep:80,120"
    else:
        right, needed, example = len(numbers) < 2, "takes one whole number of epochs", "plateau:5"
    if not right or any(map(math.isnan, numbers)):
        raise UsageError(f"The schedule {name!r} {needed}.", expected=example, got=text)
    return name, [int(value) for value in numbers]


def loss(text: str) -> tuple[str, float]:
    """Read a term of the loss, as its name and its weight.

    Examples
    --------
    >>> loss("center:0.1"), loss("triplet")
    (('center', 0.1), ('triplet', 1.0))
    """
    name, argument = _split(text, "loss", plain=(CROSS_ENTROPY,), others=("triplet", "center"))
    weight = number(argument) if ":" in text else 1.0
    if not weight > 0:
        raise UsageError(
            f"{text!r} is not a loss.", expected=f"{name}:W with a weight W above zero", got=text
        )
    return name, weight


def augmentation(text: str) -> tuple[str, float]:
    """Read an augmentation, as its name and its amount.

    Examples
    --------
    >>> augmentation("rotation:5"), augmentation("flip")
    (('rotation', 5.0), ('flip', 0.0))
    """
    others = ("crop", "rotation", "cutout")
    name, argument = _split(text, "augmentation", plain=("flip",), others=others)
    if name == "flip":
        return name, 0.0
    amount = number(argument, whole=name != "rotation")
    if not amount > 0:
        unit = "degrees" if name == "rotation" else "whole pixels"
        raise UsageError(
            f"The augmentation {name!r} needs its {unit}, above zero.",
            expected=f"{name}:4",
            got=text,
        )
    return name, amount


def _split(
    text: str, kind: str, plain: tuple[str, ...], others: tuple[str, ...]
) -> tuple[str, str]:
    """Return name and argument; the name is known, and a plain one has no argument."""
    name, colon, argument = text.partition(":")
    if name not in plain + others:
        raise UnknownNameError(f"There is no {kind} named {name!r}.", name, plain + others)
    if colon and name in plain:
        raise UsageError(f"The {kind} {name!r} takes no number.", expected=name, got=text)
    return name, argument
