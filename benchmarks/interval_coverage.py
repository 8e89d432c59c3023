"""How often intervals of one method cover the truth.

    python benchmarks/interval_coverage.py [--runs 400] [--out FILE]

Three simulations: balanced accuracy, macro F1 and ROC AUC of four unequally frequent classes; the
calibration error of answers that claim too much by so many points; and the accuracy of models from
several training sets, right with a probability that depends on the image and on the set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from featpipe.evaluation.bootstrap import metric_intervals
from featpipe.evaluation.metrics import Predictions, classification_metrics, reliability_curve
from featpipe.provenance import environment
from featpipe.statistics.intervals import methods_interval
from featpipe.statistics.two_way import TrainingSets

HERE = Path(__file__).resolve().parent
MANY = 400_000  # rows from which the truth is computed
FREQUENCY = (0.4, 0.3, 0.2, 0.1)

Run = Callable[[np.random.Generator], Iterator[tuple[str, float, float]]]


def counted(n: int, rng: np.random.Generator) -> Predictions:
    """Return scores of four classes, right for about two rows in three."""
    true = rng.choice(4, n, p=FREQUENCY)
    scores = rng.normal(size=(n, 4)) + 1.5 * np.eye(4)[true]
    return Predictions(np.arange(n), true, scores.argmax(axis=1), tuple("abcd"), scores)


def claimed(n: int, excess: float, rng: np.random.Generator) -> Predictions:
    """Return answers between two classes that claim too much by ``excess``."""
    sure = rng.uniform(0.5, 1, n)
    true = (rng.random(n) > sure - excess).astype(int)
    likely = np.column_stack([sure, 1 - sure])
    return Predictions(np.arange(n), true, np.zeros(n, int), ("a", "b"), None, likely)


def of_metrics(n: int) -> tuple[Run, dict[str, float]]:
    """Return a run of the first simulation, and the true values."""

    def run(rng: np.random.Generator) -> Iterator[tuple[str, float, float]]:
        rows = counted(n, rng)
        found = metric_intervals(rows, np.arange(n), np.zeros(n, int), classification_metrics(rows))
        yield from ((name, interval.low, interval.high) for name, interval in found.items())

    return run, classification_metrics(counted(MANY, np.random.default_rng(1)))


def of_calibration(n: int, excess: float) -> tuple[Run, dict[str, float]]:
    """Return a run of the second simulation, and the true error."""

    def run(rng: np.random.Generator) -> Iterator[tuple[str, float, float]]:
        rows = claimed(n, excess, rng)
        values = {"ece": reliability_curve(rows)["ece"]}
        found = metric_intervals(rows, np.arange(n), np.zeros(n, int), values)["ece"]
        yield f"ece, {excess:g} too sure", found.low, found.high

    return run, {f"ece, {excess:g} too sure": excess}


def of_training_sets(n: int, sets: int, sd: float) -> tuple[Run, dict[str, float]]:
    """Return a run of the third simulation, and the true accuracy."""
    training = TrainingSets(tuple(map(str, range(sets))), 100, 0.0, own_pool=False)
    row, model = np.tile(np.arange(n), sets), np.repeat(np.arange(sets), n)
    name = f"accuracy, {sets} training sets, sd {sd:g}"

    def run(rng: np.random.Generator) -> Iterator[tuple[str, float, float]]:
        ease, skill = rng.normal(1.5, 1, n), rng.normal(0, sd, (sets, 1))
        right = rng.random((sets, n)) < stats.norm.cdf(ease + skill)
        interval, _ = methods_interval(right.ravel(), row, model, training)
        yield name, interval.low, interval.high

    return run, {name: stats.norm.cdf(1.5 / np.sqrt(2 + sd**2))}


def measure(n: int, run: Run, truth: dict[str, float], runs: int) -> Iterator[dict]:
    """Repeat a run and give a row of the table for each metric."""
    limits: dict[str, list[tuple[float, float]]] = {}
    for seed in range(runs):
        for name, low, high in run(np.random.default_rng([n, seed])):
            limits.setdefault(name, []).append((low, high))
    for name, found in limits.items():
        low, high = np.array(found).T
        yield {
            "metric": name,
            "test rows": n,
            "true value": round(float(truth[name]), 3),
            "coverage": round(float(((low <= truth[name]) & (truth[name] <= high)).mean()), 3),
            "mean width": round(float((high - low).mean()), 4),
        }


def main() -> None:
    """Run all simulations and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400)
    out = HERE / "results" / "interval_coverage.json"
    parser.add_argument("--out", type=Path, default=out)
    arguments = parser.parse_args()
    rows = []
    for n in (100, 400, 2000):
        for simulation in (
            of_metrics(n),
            *(of_calibration(n, excess) for excess in (0.0, 0.03, 0.1)),
            *(of_training_sets(n, sets, sd) for sets in (3, 10) for sd in (0.0, 0.1, 0.3)),
        ):
            rows += measure(n, *simulation, arguments.runs)
    record = {"runs": arguments.runs, "rows": rows, "environment": environment()}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(pd.DataFrame(rows).to_markdown(index=False))


if __name__ == "__main__":
    main()
