"""Options that take an argument: ``mlp:50``, ``multistep:80,120``, ``center:0.1``, ``crop:4``.

They are read here, without torch, so that a command line or a recipe refuses what is wrong before
anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from featpipe.errors import UnknownNameError, UsageError
from featpipe.registry import did_you_mean

# Each optimizer with its class in torch.optim, and the options that only some of them have.
OPTIMIZERS = {
    "sgd": ("SGD", {"momentum", "nesterov"}),
    "adam": ("Adam", {"betas", "eps"}),
    "adamw": ("AdamW", {"betas", "eps"}),
    "nadam": ("NAdam", {"betas", "eps"}),
    "rmsprop": ("RMSprop", {"momentum", "eps"}),
}
HEADS = ("linear", "mlp")
SCHEDULES = ("none", "multistep", "cosine", "plateau", "onecycle")
CROSS_ENTROPY = "cross-entropy"
LOSSES = (CROSS_ENTROPY, "triplet", "center")
AUGMENTATIONS = ("crop", "flip", "rotation", "cutout")

_MOST_NEURONS = 65_536


def head(text: str) -> tuple[str, int]:
    """Read a head, as its name and its hidden neurons.

    Raises
    ------
    UnknownNameError
        Here and below: if there is nothing of this name.
    UsageError
        Here and below: if the argument is missing or not possible.

    Examples
    --------
    >>> head("mlp:50"), head("linear")
    (('mlp', 50), ('linear', 0))
    """
    name, argument = _split(text, "head", HEADS, without_argument=("linear",))
    if name == "linear":
        return name, 0
    if not _is_whole(argument) or not 1 <= int(argument) <= _MOST_NEURONS:
        raise UsageError(
            f"The head {name!r} needs its number of hidden neurons.",
            expected=f"{name}:50; at most {name}:{_MOST_NEURONS}",
            got=text,
        )
    return name, int(argument)


def schedule(text: str) -> tuple[str, list[int]]:
    """Read a schedule, as its name and its numbers.

    Examples
    --------
    >>> schedule("multistep:80,120"), schedule("cosine"), schedule("plateau")
    (('multistep', [80, 120]), ('cosine', []), ('plateau', []))
    """
    name, argument = _split(
        text, "schedule", SCHEDULES, without_argument=("none", "cosine", "onecycle")
    )
    parts = [part.strip() for part in argument.split(",")] if ":" in text else []
    numbers = [int(part) for part in parts if _is_whole(part)]
    ascending = sorted(set(numbers)) == numbers and all(number > 0 for number in numbers)
    if name == "multistep" and (not numbers or not ascending or len(numbers) < len(parts)):
        raise UsageError(
            "The schedule 'multistep' needs ascending epochs.",
            expected="multistep:80,120",
            got=text,
        )
    if name == "plateau" and (len(numbers) < len(parts) or len(parts) > 1):
        raise UsageError(
            "The schedule 'plateau' takes one whole number of epochs.",
            expected="plateau:5",
            got=text,
        )
    return name, numbers


def loss(text: str) -> tuple[str, float]:
    """Read a term of the loss, as its name and its weight.

    Examples
    --------
    >>> loss("center:0.1"), loss("triplet")
    (('center', 0.1), ('triplet', 1.0))
    """
    name, argument = _split(text, "loss", LOSSES, without_argument=(CROSS_ENTROPY,))
    weight = _number(argument) if ":" in text else 1.0
    if weight is None or weight <= 0:
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
    name, argument = _split(text, "augmentation", AUGMENTATIONS, without_argument=("flip",))
    if name == "flip":
        return name, 0.0
    unit = "degrees" if name == "rotation" else "whole pixels"
    amount = _number(argument) if name == "rotation" or _is_whole(argument) else None
    if amount is None or amount <= 0:
        raise UsageError(
            f"The augmentation {name!r} needs its {unit}, above zero.",
            expected=f"{name}:4",
            got=text,
        )
    return name, amount


def _split(
    text: str, kind: str, known: Sequence[str], without_argument: Sequence[str]
) -> tuple[str, str]:
    """Return name and argument; the name is known, and has no argument where it takes none."""
    name, colon, argument = text.partition(":")
    if name not in known:
        raise UnknownNameError(
            f"There is no {kind} named {name!r}.",
            expected=", ".join(known),
            next_step=did_you_mean(name, known).strip() or None,
        )
    if colon and name in without_argument:
        raise UsageError(f"The {kind} {name!r} takes no number.", expected=name, got=text)
    return name, argument


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
