"""How long linear probes take to choose C and to fit, beside scikit-learn, on the same data.

Needs the features of STL-10's training split by ResNet-50 in a workspace; the part ``equal`` those
of three more datasets, too. Each part can be run alone; what it finds is merged into the results
file.

    featpipe extract --model resnet50 --dataset stl10 --split train --workspace WS
    featpipe extract --model resnet18 --dataset stl10 --split train --workspace WS
    featpipe extract --model glyphnet --dataset digits --workspace WS
    featpipe extract --model resnet18 --dataset folder:imagenette-val500 --workspace WS
    python benchmarks/solvers.py --workspace WS [--only fit,svm,grid,folds,…]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC

from featpipe.evaluation.fitting import fit_splits
from featpipe.evaluation.protocol import make_splits
from featpipe.probes.linear import BatchedLinearSVC
from featpipe.probes.logistic import Logistic
from featpipe.probes.losses import Softmax
from featpipe.probes.neighbours import Knn
from featpipe.probes.newton import Newton
from featpipe.probes.rows import Rows
from featpipe.probes.solvers import ScikitLearn
from featpipe.probes.svm import Svm
from featpipe.provenance import environment
from featpipe.store import FeatureStore

GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
JOBS = 2


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call took, and its value."""
    began = time.perf_counter()
    value = function()
    return time.perf_counter() - began, value


def features(workspace: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return STL-10's training rows, as ResNet-50 sees them, and their labels."""
    (path,) = (workspace / "data/features/stl10/resnet50").glob("train-*.h5")
    store = FeatureStore(path)
    return np.array(store.features(), np.float32), np.asarray(store.labels)


def command(workspace: Path, *options: str) -> tuple[float, float]:
    """Return the seconds of a whole command, and the accuracy it reports."""
    call = [sys.executable, "-m", "featpipe", *options, "--model", "resnet50", "--dataset", "stl10"]
    call += ["--workspace", str(workspace), "--force", "--jobs", str(JOBS), "--json"]
    seconds, done = timed(lambda: subprocess.run(call, capture_output=True, text=True, check=True))
    outcome = json.loads(done.stdout.splitlines()[-1])
    return seconds, outcome["accuracy"]["value"]


def fit(workspace: Path) -> dict[str, Any]:
    """One fit of 5000 × 2048 × 10 for each C."""
    X, y = features(workspace)
    X = StandardScaler().fit_transform(X)
    rows = []
    for C in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        ours, model = timed(lambda C=C: BatchedLinearSVC(C, n_jobs=JOBS).fit(X, y))
        dual, reference = timed(lambda C=C: LinearSVC(C=C, dual=True, max_iter=5000).fit(X, y))
        primal, _ = timed(lambda C=C: LinearSVC(C=C, dual=False, max_iter=5000).fit(X, y))
        same = float(np.mean(model.predict(X) == reference.predict(X)))
        objective = [svm_objective(m, X, y, C) for m in (model, reference)]
        rows.append(
            {
                "C": C,
                "batched_seconds": ours,
                "dual_seconds": dual,
                "primal_seconds": primal,
                "ratio": min(dual, primal) / ours,
                "objective_ratio": objective[0] / objective[1],
                "equal_answers": same,
                "gap": model.gap_,
            }
        )
        print(rows[-1], flush=True)
    return {"rows": 5000, "features": 2048, "classes": 10, "fits": rows}


def svm_objective(model: Any, X: np.ndarray, y: np.ndarray, C: float) -> float:
    """Return the sum over classes of the objective, in double precision."""
    W = np.vstack([model.coef_.T, model.intercept_]).astype(np.float64)
    margin = np.where(y[:, None] == model.classes_, 1, -1) * (X.astype(np.float64) @ W[:-1] + W[-1])
    return float(0.5 * (W**2).sum() + C * (np.maximum(0, 1 - margin) ** 2).sum())


def svm(workspace: Path) -> dict[str, Any]:
    """Nine values of C × 5 folds + refit on 4000 rows, as a command."""
    options = ["--protocol", "holdout:0.2", "--validation", "kfold:5"]
    options += ["--c", ",".join(map(str, GRID))]
    ours = command(workspace, "svm", *options)
    reference = command(workspace, "svm", *options, "--solver", "sklearn")
    return compared(ours, reference)


def grid(workspace: Path) -> dict[str, Any]:
    """Search the same by GridSearchCV, as a notebook would call it."""
    X, y = (part[:4000] for part in features(workspace))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), OneVsRestClassifier(LinearSVC(dual=True, max_iter=5000))),
        {"onevsrestclassifier__estimator__C": GRID},
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
        n_jobs=JOBS,
    )
    return {"grid_search_seconds": timed(lambda: search.fit(X, y))[0]}


def folds(workspace: Path) -> dict[str, Any]:
    """STL-10's ten official folds × the default five values of C, as a command."""
    options = ["svm", "--protocol", "folds"]
    return compared(
        command(workspace, *options), command(workspace, *options, "--solver", "sklearn")
    )


def compared(ours: tuple[float, float], reference: tuple[float, float]) -> dict[str, Any]:
    """Return seconds and accuracies of two commands."""
    return {
        "seconds": ours[0],
        "sklearn_seconds": reference[0],
        "ratio": reference[0] / ours[0],
        "accuracy": ours[1],
        "sklearn_accuracy": reference[1],
    }


def logistic(workspace: Path) -> dict[str, Any]:
    """Nine values of C × 5 folds on 4000 rows, beside scikit-learn's search."""
    X, y = (part[:4000] for part in features(workspace))
    cv = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    strategy = Logistic(c=GRID, solver="batched").strategy(*X.shape)
    ours, found = timed(lambda: strategy.search(X, y, cv, GRID, JOBS))
    result = {
        "seconds": ours,
        "accuracies": [one["accuracy"] for one in found],
        "gaps": [one["gap"] for one in found],
    }
    # With its default tolerance L-BFGS stops early where C is large; with the others, later.
    for name, tol in (("default", 1e-4), ("precise", 1e-6), ("most_precise", 1e-7)):
        estimator = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, tol=tol))
        grid = {"logisticregression__C": GRID}
        search = GridSearchCV(estimator, grid, cv=cv, n_jobs=JOBS, refit=False)
        seconds, _ = timed(lambda search=search: search.fit(X, y))
        result[f"sklearn_{name}"] = {
            "tol": tol,
            "seconds": seconds,
            "ratio": seconds / ours,
            "accuracies": search.cv_results_["mean_test_score"].tolist(),
            "gaps": [softmax_gap(estimator, C, X[cv[0][0]], y[cv[0][0]]) for C in GRID],
        }
        print(result[f"sklearn_{name}"], flush=True)
    return result


def softmax_gap(estimator: Any, C: float, X: np.ndarray, y: np.ndarray) -> float:
    """Return the gap that scikit-learn leaves with one C on one fold, as ``Newton`` counts it."""
    scaler, model = clone(estimator).set_params(logisticregression__C=C).fit(X, y)
    Z, target = scaler.transform(X).astype(np.float64), np.searchsorted(model.classes_, y)
    loss = Softmax(target, np.ones((len(y), 1)), np.arange(1), len(model.classes_))
    at = Newton(Rows(Z), loss, max_iter=0)
    at.W[:-1, 0] = model.coef_.T
    at.F = at.rows.forward(at.W, loss.fold)
    at.minimise(C, tol=0)  # no step, only what it begins with
    return float(at.gap[0])


STORES = {  # dataset and backbone: the folder of their stores, and the protocol
    "STL-10, ResNet-50": ("stl10/resnet50", "fold:0"),
    "STL-10, ResNet-18": ("stl10/resnet18", "fold:0"),
    "digits, glyphnet": ("digits/glyphnet", "split"),
    "imagenette-val500, ResNet-18": ("folder-imagenette-val500/resnet18", "kfold:5"),
}


class ConvergedSvm(Svm):
    """An SVM whose scikit-learn solver goes on until hardly anything changes."""

    def strategy(self, n_rows: int, n_features: int) -> Any:
        """Search and fit with a tighter tolerance than scikit-learn's default."""
        return ScikitLearn(self, tol=1e-7)


class ConvergedLogistic(Logistic):
    """Logistic regression likewise."""

    strategy = ConvergedSvm.strategy


def equal(workspace: Path) -> dict[str, Any]:
    """Accuracy and chosen C of svm and logistic with their default grids, by each solver."""
    rows = []
    for name, (folder, protocol) in STORES.items():
        found = (workspace / "data/features" / folder).glob("*.h5")
        train, *test = map(FeatureStore, sorted(found, key=lambda path: path.name[:4] == "test"))
        splits = make_splits(protocol, train, test[0] if test else None, seed=0)[1]
        labels = np.concatenate([split.test.labels for split in splits])
        for probes in (
            {"batched": Svm(solver="batched"), "sklearn": Svm(solver="sklearn")}
            | {"converged": ConvergedSvm(solver="sklearn")},
            {"batched": Logistic(solver="batched"), "sklearn": Logistic(solver="sklearn")}
            | {"converged": ConvergedLogistic(solver="sklearn")},
        ):
            row: dict[str, Any] = {"data": name, "protocol": protocol, "test_rows": len(labels)}
            row["method"], answers = probes["batched"].name, {}
            for solver, probe in probes.items():
                fits = [fit for _, fit in fit_splits(splits, probe, JOBS)]
                answers[solver] = np.concatenate([fit.predicted for fit in fits])
                row[solver] = {
                    "accuracy": float(np.mean(answers[solver] == labels)),
                    "c": [fit.facts["chosen"]["c"] for fit in fits],
                    "different_answers": int(np.sum(answers[solver] != answers["batched"])),
                }
            rows.append(row)
            print(row, flush=True)
    return {"rows": rows}


def made(n: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return overlapping classes in correlated features, a tenth of the rows mislabelled."""
    rng = np.random.default_rng(0)
    y = rng.integers(classes, size=n)
    scale = np.arange(1, d + 1) ** -0.5
    X = (rng.standard_normal((n, d), np.float32) * 2 + rng.standard_normal((classes, d))[y]) * scale
    wrong = rng.random(n) < 0.1
    return X.astype(np.float32), np.where(wrong, rng.integers(classes, size=n), y)


def classes(workspace: Path) -> dict[str, Any]:
    """100 classes × 50,000 rows × 512: LinearSVC is timed on 4 of the classes."""
    X, y = made(50_000, 512, 100)
    X = StandardScaler().fit_transform(X)
    rows = []
    for C in (1e-4, 1e-3, 1e-2):
        ours, model = timed(lambda C=C: BatchedLinearSVC(C, n_jobs=JOBS).fit(X, y))
        best = min(
            timed(
                lambda dual=dual, C=C: [
                    LinearSVC(C=C, dual=dual, max_iter=5000).fit(X, y == k) for k in range(4)
                ]
            )[0]
            for dual in (True, False)
        )
        rows.append({"C": C, "seconds": ours, "linear_svc_seconds": best * 25, "gap": model.gap_})
        rows[-1]["ratio"] = rows[-1]["linear_svc_seconds"] / ours
        print(rows[-1], flush=True)
    return {"rows": 50_000, "features": 512, "classes": 100, "linear_svc_classes": 4, "fits": rows}


def knn(workspace: Path) -> dict[str, Any]:
    """50,000 × 64 training rows against 10,000 validated ones, six numbers of neighbours."""
    X, y = made(60_000, 64, 10)
    cv = [(np.arange(50_000), np.arange(50_000, 60_000))]
    ks = Knn().candidates()
    ours, found = timed(lambda: Knn().strategy(*X.shape).search(X, y, cv, ks, JOBS))
    estimator = make_pipeline(Normalizer(), KNeighborsClassifier(algorithm="brute"))
    grid = {"kneighborsclassifier__n_neighbors": ks}
    search = GridSearchCV(estimator, grid, cv=cv, refit=False)
    reference, _ = timed(lambda: search.fit(X, y))
    return {
        "seconds": ours,
        "grid_search_seconds": reference,
        "ratio": reference / ours,
        "accuracies": [one["accuracy"] for one in found],
        "sklearn_accuracies": search.cv_results_["mean_test_score"].tolist(),
    }


class OnDisk:
    """Rows of a float16 file, read when asked for."""

    dtype = np.dtype(np.float32)

    def __init__(self, path: Path, n: int, d: int) -> None:
        self.path, self.shape = path, (n, d)

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = np.atleast_1d(np.arange(self.shape[0])[rows])
        first, n = int(numbers[0]), int(numbers[-1] - numbers[0]) + 1
        width = self.shape[1]
        block = np.fromfile(self.path, np.float16, n * width, offset=first * width * 2)
        block = block.reshape(n, width)[numbers - first].astype(np.float32)
        return block if np.ndim(numbers) and not np.isscalar(rows) else block[0]


def memory(workspace: Path) -> dict[str, Any]:
    """1,000,000 × 2048 float16 on the disk: seconds and peak memory, and of a quarter of it."""
    found = []
    for n in (250_000, 1_000_000):
        call = [sys.executable, __file__, "--one", str(n)]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    return {"features": 2048, "classes": 10, "C": 1e-6, "sizes": found}


def train_from_disk(n: int) -> None:
    """Write n rows and train on them, in a process of their own."""
    d, step = 2048, 10_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((10, d), np.float32) / 8
        y = rng.integers(10, size=n)
        with path.open("wb") as file:
            for start in range(0, n, step):
                part = y[start : start + step]
                rows = rng.standard_normal((len(part), d), np.float32) + centres[part]
                file.write(rows.astype(np.float16).tobytes())
        strategy = Svm(c=(1e-6,), solver="batched").strategy(n, d)
        seconds, (_, facts) = timed(lambda: strategy.fit(OnDisk(path, n, d), y, 1e-6, JOBS))
    # Not ru_maxrss: a process begins with that of the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024
    print(json.dumps({"rows": n, "seconds": seconds, "peak_bytes": peak, **facts}))


PARTS = {p.__name__: p for p in (fit, svm, grid, folds, logistic, equal, classes, knn, memory)}


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "solvers.json"
    )
    arguments = parser.parse_args()
    if arguments.one:
        train_from_disk(arguments.one)
        return
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.only.split(","):
        print(name, flush=True)
        found[name] = PARTS[name](arguments.workspace) | {"environment": environment()}
        print(json.dumps({k: v for k, v in found[name].items() if k != "environment"}), flush=True)
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
