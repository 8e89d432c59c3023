"""Trustworthy baselines for image classification: from a folder of photos to a report.

Every name is imported when it is first used, so that ``import featpipe`` and ``featpipe --help``
are fast. What the commands need beside it is in :mod:`featpipe.api`.

>>> import featpipe as fp
>>> train, test = fp.extract("digits", "glyphnet")                      # doctest: +SKIP
>>> svm = fp.evaluate("svm", train, test)                               # doctest: +SKIP
>>> knn = fp.evaluate("knn", train, test, k=(1, 5, 20))                 # doctest: +SKIP
>>> fp.compare([svm, knn]).table()                                      # doctest: +SKIP
>>> fp.report([svm, knn], "reports/digits")                             # doctest: +SKIP
"""

# ruff: noqa: F405 - the type checker sees all of api
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featpipe.api import *  # noqa: F403

__all__ = [
    "Answer", "Audit", "Comparison", "Embedder", "FeatpipeError", "FeatureStore", "LabelMap",
    "Result", "compare", "evaluate", "export", "extract", "finetune", "load_backbone", "predict",
    "report", "zeroshot",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("featpipe.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
