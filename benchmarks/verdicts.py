"""How often verdicts are wrong, how wide their intervals are, and what they can find.

    python benchmarks/verdicts.py [--replicates 400] [--out benchmarks/results/verdicts.json]

Two methods learn the same two classes, each from its own measurements of every image (and some
that both share), so that by symmetry neither is better: any difference that a test finds is a
false alarm. Weakening the measurements of one makes the other better by a known number of points.
The oracle's interval has the true standard deviation, found by repeating everything. Printed
beside the test over training sets and rows: the test over rows alone, read as if it
spoke of the methods, and the same with a single training set.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize, stats
from threadpoolctl import threadpool_limits

from featpipe.provenance import environment
from featpipe.statistics.paired_tests import Answers, between_methods, between_models
from featpipe.statistics.two_way import TrainingSets

SHARED, OWN = 4, 20  # measurements that both methods see, and of each alone
SIGNAL = 0.25  # distance of the classes, in standard deviations of one measurement
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Design:
    """How rows train and test: ``n`` training rows a model, ``tests`` rows, ``models`` models."""

    name: str
    n: int
    tests: int
    models: int
    pool: int | None = None  # training sets are drawn from that many rows; None: disjoint


DESIGNS = (
    Design("folds", 100, 4000, 10),
    Design("folds", 100, 400, 10),
    Design("folds", 500, 4000, 10),
    Design("folds", 100, 4000, 5),
    Design("overlapping folds", 100, 4000, 10, 500),
    Design("overlapping folds", 500, 4000, 10, 2500),
    Design("folds, no test split", 100, 900, 10),
    Design("folds, no test split", 500, 4500, 10),
    Design("overlapping folds, no test split", 500, 2000, 10, 2500),
    Design("k-fold", 100, 0, 5),
    Design("k-fold", 200, 0, 10),
    Design("k-fold", 500, 0, 5),
    Design("k-fold", 500, 0, 10),
)


def images(rng, n, weakened):
    """Draw n images: their classes, and what each method measures of them."""
    classes = np.random.default_rng(1).normal(size=(2, SHARED + OWN)) * SIGNAL
    y = rng.integers(0, 2, n)
    shared = classes[y, :SHARED] + rng.normal(size=(n, SHARED))
    a = classes[y, SHARED:] + rng.normal(size=(n, OWN))
    b = (1 - weakened) * classes[y, SHARED:] + rng.normal(size=(n, OWN))
    return y, np.hstack([shared, a]), np.hstack([shared, b])


def discriminant(x, y, tested):
    """Linear discriminant analysis with a little shrinkage."""
    means = np.stack([x[y == k].mean(axis=0) for k in (0, 1)])
    centred = x - means[y]
    weights = np.linalg.solve(centred.T @ centred / len(x) + 0.1 * np.eye(x.shape[1]), means.T)
    return (tested @ weights - (means * weights.T).sum(axis=1) / 2).argmax(axis=1)


def neighbour(x, y, tested):
    """Answer with the class of the nearest neighbour, which depends strongly on the training."""
    return y[((x * x).sum(axis=1) - 2 * tested @ x.T).argmin(axis=1)]


LEARNERS = {"linear discriminant": discriminant, "nearest neighbour": neighbour}


def simulate(design: Design, learner: str, weakened: float, seed: int) -> dict[str, float]:
    """Run one experiment and return what the tests say."""
    rng, learn = np.random.default_rng(seed), LEARNERS[learner]
    rows, models, right = [], [], ([], [])
    if design.name == "k-fold":
        train = test = images(rng, design.n, weakened)
        part = rng.permutation(design.n) % design.models
        sets = [np.flatnonzero(part != k) for k in range(design.models)]
        tested = [np.flatnonzero(part == k) for k in range(design.models)]
    elif design.name.endswith("no test split"):
        rows_of_all = np.arange(design.n + design.tests)
        train = test = images(rng, len(rows_of_all), weakened)
        if design.pool:
            sets = [rng.choice(rows_of_all, design.n, replace=False) for _ in range(design.models)]
        else:
            sets = list(rng.permutation(rows_of_all).reshape(design.models, design.n))
        tested = [np.setdiff1d(rows_of_all, one) for one in sets]
    else:
        pool = design.pool or design.n * design.models
        train, test = images(rng, pool, weakened), images(rng, design.tests, weakened)
        sets = [
            rng.choice(pool, design.n, replace=False)
            if design.pool
            else np.arange(k * design.n, (k + 1) * design.n)
            for k in range(design.models)
        ]
        tested = [np.arange(design.tests)] * design.models
    for k, (one, other) in enumerate(zip(sets, tested, strict=True)):
        rows.append(other)
        models.append(np.full(len(other), k))
        for side in (0, 1):
            x, z = train[1 + side], test[1 + side]
            right[side].append(learn(x[one], train[0][one], z[other]) == test[0][other])
    own_pool = train is test
    overlap = (
        (design.models - 2) / (design.models - 1)
        if design.name == "k-fold"
        else design.n / design.pool
        if design.pool
        else 0.0
    )
    training = TrainingSets(
        tuple(map(str, range(design.models))), float(len(sets[0])), overlap, own_pool
    )
    a, b = (
        Answers(np.concatenate(rows), np.concatenate(side), np.concatenate(models), training)
        for side in right
    )
    by_rows = between_models(a, b)
    both = between_methods(a, b, by_rows)
    single = between_models(Answers(rows[0], right[0][0]), Answers(rows[0], right[1][0]))
    return {
        "difference": both.value,
        "both_centre": both.centre,
        "both_reach": both.reach(0.05),
        "both_p": both.p_value,
        "rows_centre": by_rows.centre,
        "rows_reach": by_rows.reach(0.05),
        "single_centre": single.centre,
        "single_reach": single.reach(0.05),
    }


def weakened_by(design: Design, learner: str, points: float) -> float:
    """Find how much to weaken method b so that a is better by that many points."""
    if points == 0:
        return 0.0
    n_train = (
        design.n * (design.models - 1) // design.models if design.name == "k-fold" else design.n
    )

    def gap(weakened):
        rng, gaps = np.random.default_rng(5), []
        for _ in range(300):
            y, a, b = images(rng, n_train, weakened)
            truth, test_a, test_b = images(rng, 4000, weakened)
            learn = LEARNERS[learner]
            gaps.append(
                (learn(a, y, test_a) == truth).mean() - (learn(b, y, test_b) == truth).mean()
            )
        return 100 * np.mean(gaps) - points

    return optimize.brentq(gap, 0.0, 0.9, xtol=2e-3)


def measure(design: Design, learner: str, points: float, replicates: int) -> dict:
    """Repeat an experiment and summarise it as one row of the table."""
    run = partial(simulate, design, learner, weakened_by(design, learner, points))
    seeds = np.random.SeedSequence([design.n, design.tests, design.models, int(10 * points)])
    table = pd.DataFrame([run(int(s)) for s in seeds.generate_state(replicates, np.uint64)])
    true = points / 100
    sd = table.difference.std()
    oracle = stats.norm.ppf(0.975) * sd

    def outside(kind):
        return float((abs(table[f"{kind}_centre"] - true) > table[f"{kind}_reach"]).mean())

    return {
        "design": design.name,
        "training rows": design.n,
        "test rows": design.tests or design.n,
        "models": design.models,
        "learner": learner,
        "true difference": points,
        "sd of the difference": round(100 * sd, 2),
        "coverage": round(1 - outside("both"), 3),
        "found": round(float((table.both_p < 0.05).mean()), 3),
        "found by the oracle": round(float((abs(table.difference) > oracle).mean()), 3),
        "width / oracle": round(float(table.both_reach.mean() / oracle), 2),
        "missed by rows alone": round(outside("rows"), 3),
        "missed with one training set": round(outside("single"), 3),
    }


def main() -> None:
    """Run all designs on all cores and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "verdicts.json")
    arguments = parser.parse_args()
    jobs = [
        (design, "linear discriminant", points)
        for design in DESIGNS
        for points in ((0, 1, 2, 4) if design.name in ("folds", "k-fold") else (0, 2))
    ]
    jobs += [(d, "nearest neighbour", 0) for d in DESIGNS if d.n < 500 or d.name == "k-fold"]
    with ProcessPoolExecutor(initializer=threadpool_limits, initargs=(1,)) as pool:
        futures = [pool.submit(measure, *job, arguments.replicates) for job in jobs]
        rows = []
        for future in futures:
            rows.append(future.result())
            print(json.dumps(rows[-1]), flush=True)
    record = {"replicates": arguments.replicates, "rows": rows, "environment": environment()}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(pd.DataFrame(rows).to_markdown(index=False))


if __name__ == "__main__":
    main()
