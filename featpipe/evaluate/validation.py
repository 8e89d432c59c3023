"""How training rows are split to choose hyper-parameters; test rows have no part in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from featpipe.errors import FitError
from featpipe.steps import grammar

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
    kind, number = grammar.validation(spec)
    least = int(np.unique(y, return_counts=True)[1].min())
    if least < 2:
        return None
    if kind == "kfold" or (kind == "auto" and len(y) < _FEW_ROWS):
        folds = int(number or 3)
        if kind == "kfold" and folds > least:
            raise FitError(
                f"kfold:{folds} needs {folds} training rows of every class.",
                got=f"a class with {least}",
                next_step=f"--validation kfold:{least}",
            )
        return StratifiedKFold(min(folds, least), shuffle=True, random_state=seed)
    share = number or 0.2
    n_classes = len(np.unique(y))
    n_validation = min(max(round(share * len(y)), n_classes), len(y) - n_classes)
    return StratifiedShuffleSplit(1, test_size=n_validation, random_state=seed)


def describe(cv: StratifiedKFold | StratifiedShuffleSplit) -> str:
    """Return on which training rows hyper-parameters were chosen, in words."""
    if isinstance(cv, StratifiedKFold):
        return f"{cv.n_splits} folds"
    return f"{cv.test_size} held-out rows"
