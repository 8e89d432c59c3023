"""Classifiers of scikit-learn in files of skops, of which no type is loaded that is not trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from featpipe.lazy import Lazy

# They take seconds to import, which linear classifiers do not need.
skops_io, sklearn_base, trees = Lazy("skops.io"), Lazy("sklearn.base"), Lazy("sklearn.tree._tree")

# Beside what skops trusts: plain classes, and trees, whose nodes are checked before they are used.
_TRUSTED = [
    "featpipe.probes.estimators.NearestMean",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
]
# Ensembles that pass features on to their trees unchecked.
_UNCHECKED = [f"sklearn.ensemble._{name}" for name in ("bagging", "forest", "gb", "iforest")]


def dump(path: Path, content: dict[str, Any]) -> list[str]:
    """Write a mapping; return the types in it with which it would not be loaded again."""
    skops_io.dump(content, path)
    return _foreign_types(path)


def load(path: Path) -> tuple[Any, list[str]]:
    """Return what is in a file, or ``None`` and the types that are not trusted.

    Raises
    ------
    Exception
        Whatever the parts of skops raise on a damaged file.
    """
    if foreign := _foreign_types(path):
        return None, foreign
    content = skops_io.load(path, trusted=_TRUSTED)
    _check_trees(content)
    return content, []


def _foreign_types(path: Path) -> list[str]:
    return sorted(set(skops_io.get_untrusted_types(file=path)) - set(_TRUSTED))


def _check_trees(part: Any, owners: tuple[Any, ...] = ()) -> None:
    """Refuse decision trees whose nodes lead out of them, or back: they are followed blindly.

    ``owners`` are the estimators around a part. A tree asks for no feature that the one around it
    does not take, nor an ensemble that passes features on unchecked. Others check them, and may
    give a tree more than they take: pipelines and stacks.
    """
    if isinstance(part, trees.Tree):
        unchecked = [one for one in owners if type(one).__module__ in _UNCHECKED]
        takers = (*unchecked, *owners[-1:])
        width = min([part.n_features, *(one.n_features_in_ for one in takers)])
        left, right, nodes = part.children_left, part.children_right, np.arange(part.node_count)
        below = (nodes < left) & (left < len(nodes)) & (nodes < right) & (right < len(nodes))
        known = (part.feature >= 0) & (part.feature < width)
        if not len(nodes) or not (below & known)[left != -1].all():
            raise ValueError("a decision tree is damaged")
    elif isinstance(part, sklearn_base.BaseEstimator):
        for value in vars(part).values():
            _check_trees(value, (*owners, part))
    elif isinstance(part, dict):
        _check_trees(list(part.values()), owners)
    elif isinstance(part, list | tuple) or (isinstance(part, np.ndarray) and part.dtype == object):
        for value in part:
            _check_trees(value, owners)
