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
_BOOSTING, _FOREST = "sklearn.ensemble._gb", "sklearn.ensemble._forest"


def dump(path: Path, content: dict[str, Any]) -> list[str]:
    """Write a mapping; return the types in it that loading would refuse."""
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
    _check(content)
    return content, []


def _foreign_types(path: Path) -> list[str]:
    return sorted(set(skops_io.get_untrusted_types(file=path)) - set(_TRUSTED))


def _check(part: Any, owners: tuple[Any, ...] = ()) -> None:
    """Refuse what compiled code of scikit-learn would follow blindly, out of its arrays.

    ``owners`` are the estimators around a part. Each checks the features that it gets, unless its
    methods are replaced, but boosting gives them to its trees, and forests used to, unchecked.
    """
    if isinstance(part, trees.Tree):
        unchecked = [one for one in owners if type(one).__module__ in (_BOOSTING, _FOREST)]
        takers = (*unchecked, *owners[-1:])
        _check_tree(part, min([part.n_features, *(one.n_features_in_ for one in takers)]))
    elif isinstance(part, sklearn_base.BaseEstimator):
        if not _fits_together(part):
            raise ValueError(f"the numbers of its {type(part).__name__} do not fit together")
        for name, value in vars(part).items():
            if callable(getattr(type(part), name, None)):
                raise ValueError(f"{name}() of its {type(part).__name__} is replaced")
            # What boosting starts from is an estimator like any other.
            _check(value, owners if name in ("init", "init_") else (*owners, part))
    elif isinstance(part, dict):
        _check([*part, *part.values()], owners)
    elif isinstance(part, np.ndarray) and part.dtype == object:
        _check(part.ravel().tolist(), owners)
    elif isinstance(part, list | tuple | set | frozenset):
        for value in part:
            _check(value, owners)
    elif hasattr(part, "__dict__") and not isinstance(part, type):
        _check(vars(part), owners)


def _check_tree(tree: Any, width: int) -> None:
    """Refuse a tree whose nodes lead out of it, or back, or ask for features that it lacks."""
    left, right, nodes = tree.children_left, tree.children_right, np.arange(tree.node_count)
    below = (nodes < left) & (left < len(nodes)) & (nodes < right) & (right < len(nodes))
    known = (tree.feature >= 0) & (tree.feature < width)
    if not len(nodes) or not (below & known)[left != -1].all():
        raise ValueError("a decision tree is damaged")


def _fits_together(one: Any) -> bool:
    """Return whether arrays of boosting, neighbours and kernel machines are as large as assumed.

    Those that are not fitted, as ensembles keep them for copies, have none.
    """
    module, n_classes = type(one).__module__, len(getattr(one, "classes_", ()))
    if module == _BOOSTING and hasattr(one, "estimators_"):
        columns = n_classes if n_classes > 2 else 1
        begun = len(getattr(one.init_, "classes_", one.classes_)) == n_classes
        return begun and one.n_trees_per_iteration_ == columns == one.estimators_.shape[1]
    if module.startswith("sklearn.neighbors.") and hasattr(one, "_y"):
        labels = one._y
        return len(labels) == one.n_samples_fit_ and set(np.unique(labels)) <= {*range(n_classes)}
    if module == "sklearn.svm._classes" and hasattr(one, "_dual_coef_"):
        n, pairs = len(one.support_), n_classes * (n_classes - 1) // 2
        shapes = one._dual_coef_.shape, one._intercept_.shape, one._n_support.shape
        expected = (n_classes - 1, n), (pairs,), (n_classes,)
        return shapes == expected and len(one.support_vectors_) == n == one._n_support.sum()
    return True
