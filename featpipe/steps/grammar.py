"""The small languages of options: ``kfold:5``, ``mlp:50``, ``multistep:80,120``, ``crop:4``.

They are read here, without torch or scikit-learn, so that a command line or a plan refuses what is
wrong before anything is computed. Names are checked by the registries.
"""

from __future__ import annotations

import math

from featpipe.errors import UsageError

_MOST_NEURONS = 65_536
_FREE = {"none", "cosine", "onecycle"}  # schedules without a number


def bare_name(text: str) -> str:
    """Read a name that takes no argument.

    Raises
    ------
    UsageError
        Here and below: if the text is not of this language.
    """
    name, colon, _ = text.partition(":")
    if colon:
        raise UsageError(f"{name!r} takes nothing behind a colon.", expected=name, got=text)
    return name


def protocol(text: str) -> tuple[str, float | None]:
    """Read how rows are split, as its kind and its number.

    Examples
    --------
    >>> protocol("kfold:5"), protocol("split")
    (('kfold', 5), ('split', None))
    """
    kind, colon, argument = text.partition(":")
    least = {"fold": 0, "kfold": 2}
    if kind in least:
        if not _is_whole(argument) or int(argument) < least[kind]:
            raise _no_protocol(text, f"a whole number of at least {least[kind]} after the colon")
        return kind, int(argument)
    if kind == "holdout":
        share = _number(argument)
        if share is None or not 0 < share < 1:
            raise _no_protocol(text, "a share between 0 and 1 after the colon")
        return kind, share
    if colon or kind not in ("auto", "split", "folds", "all"):
        raise _no_protocol(
            text, "auto, split, folds, fold:K, kfold:K, holdout:F or, for zeroshot, all"
        )
    return kind, None


def need_training(text: str) -> None:
    """Refuse the protocol under which no row trains."""
    if text == "all":
        raise UsageError(
            "Under the protocol 'all' every row is tested and none trains: it is for zeroshot.",
            expected="auto, split, folds, fold:K, kfold:K or holdout:F",
        )


def validation(text: str) -> tuple[str, float | None]:
    """Read how training rows choose hyper-parameters: ``auto``, ``holdout:F`` or ``kfold:K``."""
    try:
        kind, number = protocol(text)
    except UsageError:
        kind, number = "", None
    if kind not in ("auto", "holdout", "kfold"):
        raise UsageError(
            f"{text!r} is not a way to choose hyper-parameters.",
            expected="auto, holdout:F (a share such as 0.2) or kfold:K (at least 2)",
        )
    return kind, number


def head(text: str) -> tuple[str, int]:
    """Read a head, as its name and its hidden neurons.

    Examples
    --------
    >>> head("mlp:50"), head("linear")
    (('mlp', 50), ('linear', 0))
    """
    name, colon, argument = text.partition(":")
    if name == "linear":
        if colon:
            raise UsageError("The head 'linear' takes no number.", got=text)
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
    >>> schedule("multistep:80,120"), schedule("cosine")
    (('multistep', [80, 120]), ('cosine', []))
    """
    name, colon, argument = text.partition(":")
    parts = [part.strip() for part in argument.split(",")] if colon else []
    if name in _FREE and colon:
        raise UsageError(f"The schedule {name!r} takes no number.", got=text)
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
    name, colon, argument = text.partition(":")
    weight = _number(argument) if colon else 1.0
    if weight is None or weight <= 0 or (name == "cross-entropy" and colon):
        raise UsageError(
            f"{text!r} is not a loss.",
            expected="cross-entropy, triplet:W or center:W with a weight W above zero",
        )
    return name, weight


def augmentation(text: str) -> tuple[str, float]:
    """Read an augmentation, as its name and its amount.

    Examples
    --------
    >>> augmentation("rotation:5"), augmentation("flip")
    (('rotation', 5.0), ('flip', 0.0))
    """
    name, colon, argument = text.partition(":")
    if name == "flip":
        if colon:
            raise UsageError("The augmentation 'flip' takes no number.", got=text)
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


def _no_protocol(text: str, expected: str) -> UsageError:
    return UsageError(f"{text!r} is not a protocol.", expected=expected)


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
