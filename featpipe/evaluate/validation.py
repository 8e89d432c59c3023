"""How training rows are split to choose hyper-parameters; test rows have no part in it."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from featpipe.errors import FitError, UsageError

_FEW_ROWS = 2000  # below this, one validation holdout is too noisy a judge and folds are cheap


def validation_rows(
    spec: str, y: NDArray[np.int64], seed: int
) -> StratifiedKFold | StratifiedShuffleSplit | None:
    """Return how training rows are split to choose hyper-parameters.

    Returns ``None`` where some class has a single row, so that no row of it can be held out.

    Raises
    ------
    UsageError
        If ``spec`` is not ``"auto"``, ``"holdout:F"`` or ``"kfold:K"``.
    """
    match = re.fullmatch(r"auto|kfold:(\d+)|holdout:(0?\.\d+)", spec)
    if match is None or (match[1] and int(match[1]) < 2) or (match[2] and not float(match[2])):
        raise UsageError(
            f"{spec!r} is not a way to choose hyper-parameters.",
            expected="auto, holdout:F (a share such as 0.2) or kfold:K (at least 2)",
        )
    least = int(np.unique(y, return_counts=True)[1].min())
    if least < 2:
        return None
    folds = int(match[1] or 3)
    if match[1] or (spec == "auto" and len(y) < _FEW_ROWS):
        if match[1] and folds > least:
            raise FitError(
                f"kfold:{folds} needs {folds} training rows of every class.",
                got=f"a class with {least}",
                next_step=f"--validation kfold:{least}",
            )
        return StratifiedKFold(min(folds, least), shuffle=True, random_state=seed)
    share = float(match[2] or 0.2)
    n_classes = len(np.unique(y))
    n_validation = min(max(round(share * len(y)), n_classes), len(y) - n_classes)
    return StratifiedShuffleSplit(1, test_size=n_validation, random_state=seed)


def describe(cv: StratifiedKFold | StratifiedShuffleSplit) -> str:
    """Return on which training rows hyper-parameters were chosen, in words."""
    if isinstance(cv, StratifiedKFold):
        return f"{cv.n_splits} folds"
    return f"{cv.test_size} held-out rows"
