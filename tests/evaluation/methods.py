"""Small stores, short ways to evaluate on them, and to forge what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.evaluation import run
from featpipe.evaluation.result import Result
from featpipe.fingerprint import sealed_json
from featpipe.probes.base import Evaluation
from featpipe.steps import Context
from featpipe.store import FeatureStore, StoreContent, StoreWriter
from featpipe.workspace import Workspace
from tests.stores import RUN, content, features, sealed


def pair(folder: Path, n: int = 60, n_test: int = 30, *, noise: float = 4.0, **more: Any):
    """Return a training and a test store of the same classes, hard enough to make mistakes."""
    train = sealed(folder / "train.h5", content(n, **more), noise=noise, seed=1)
    test = sealed(folder / "test.h5", content(n_test, split="test", **more), noise=noise, seed=2)
    return train, test


def written(path: Path, what: StoreContent, **arrays: np.ndarray) -> FeatureStore:
    """Seal a store of exactly these arrays; those left out are drawn."""
    with StoreWriter(path, what) as writer:
        writer.append({**features(what), **arrays})
        return writer.seal(RUN)


def context(folder: Path, jobs: int = 1) -> Context:
    return Context(Workspace(folder), jobs=jobs)


def evaluate(step: Evaluation, train: FeatureStore, test=None, where=None, path=None) -> Result:
    """Evaluate on stores, in a context, and save at a path if one is given."""
    return run.evaluate(run.set_up(step, train, test), where or Context(), path)


def evaluated(step: Evaluation, folder: Path, train: FeatureStore, test=None, jobs=1) -> Result:
    """Evaluate and save under the method's name."""
    where = context(folder, jobs)
    return evaluate(step, train, test, where, where.workspace.results / f"{step.name}.json")


NUMBERS_OF_A_RUN = ("created", "environment", "command", "cost", "path", "stores", "digests")


def numbers(result: Result) -> dict[str, Any]:
    """Return all of a result but times and places."""
    found = {key: value for key, value in vars(result).items() if key not in NUMBERS_OF_A_RUN}
    found["splits"] = [{k: v for k, v in s.items() if k != "seconds"} for s in result.splits]
    found["parameters"] = result.cost["parameters_trained"]
    return found


def forge(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a result and give it a digest that fits, as anybody can."""
    content = json.loads(path.read_text("utf-8"))
    change(content)
    del content["digest"]
    path.write_text(sealed_json(content), "utf-8")
