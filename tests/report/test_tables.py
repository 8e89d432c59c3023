"""The sentence at the top is never stronger than the tests; tables hold what was measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featpipe.report.data import Group, Method
from featpipe.report.tables import (
    conclude,
    confusion,
)
from featpipe.statistics.paired_tests import Answers
from featpipe.statistics.two_way import TrainingSets
from featpipe.statistics.verdicts import BETTER, WORSE, compare_all
from tests.report.conftest import Made, Page


def group(*rights: np.ndarray) -> Group:
    """Return a group of methods with given right answers, best first, judged by the real tests.

    Right answers of shape (models, rows) are those of models with a training set each.
    """
    named, methods = {}, []
    for i, right in enumerate(rights):
        models, n = np.atleast_2d(right).shape
        sets = TrainingSets(tuple(f"set {k}" for k in range(models)), 50, 0.0, False)
        named[f"m{i}"] = Answers(
            np.tile(np.arange(n), models), right.ravel(), np.repeat(np.arange(models), n), sets
        )
    pairs = compare_all(named)
    for i, right in enumerate(rights):
        row: dict[str, Any] = {"name": f"m{i}", "n_test": n, "accuracy": float(right.mean())}
        row |= {"low": 0.1, "high": 0.9}
        for question in ("models", "methods"):
            test = next((p[question] for p in pairs if (p["a"], p["b"]) == ("m0", f"m{i}")), None)
            word = "highest" if i == 0 else test and test["verdict"]
            row[f"verdict_{question}"] = WORSE if word == BETTER else word
        row["verdict"] = "tied best" if i and right.mean() == rights[0].mean() else None
        methods.append(SimpleNamespace(title=f"Method {i}", row=row))
    if any(method.row["verdict"] for method in methods):
        methods[0].row["verdict"] = "tied best"
    return Group("toy", methods, pairs)


def right(n: int, of: int = 400) -> np.ndarray:
    """Return right answers on the first n rows."""
    return np.arange(of) < n


def test_a_clear_winner_is_named_with_its_interval() -> None:
    text = conclude(group(right(380), right(300)), 1.0)
    assert "Method 0 has the highest accuracy on the 400 test images of toy, 95.00\u00a0%" in text
    assert "Of these models: Method 0 is better than Method 1 by 20.00 points" in text
    assert "(95\u00a0% interval +1" in text


def test_of_several_worse_methods_the_nearest_is_named() -> None:
    text = conclude(group(right(380), right(300), right(200)), 1.0)
    assert "Method 0 is better than Method 1 and Method 2, the nearest by 20.00 points" in text
    assert "97.5\u00a0% interval" in text or "95\u00a0% interval" in text


def test_equal_accuracies_tie() -> None:
    text = conclude(group(right(300), right(300)), 1.0)
    assert "Method 0 and Method 1 tie for the highest accuracy" in text
    assert "better than" not in text


def test_undecided_says_what_would_decide() -> None:
    text = conclude(group(right(30, 40), right(28, 40)), 1.0)
    assert "Of these models: Method 1 is undecided (about " in text
    assert "test images would decide that)" in text


def test_equivalent_says_the_margin() -> None:
    pair = right(3900, 4000), right(3899, 4000)
    assert "Method 1 is equivalent within 1 point." in conclude(group(*pair), 1.0)
    assert "within 2.5 points" in conclude(group(*pair), 2.5)


def test_part_undecided_part_win() -> None:
    text = conclude(group(right(380), right(379), right(374), right(200)), 1.0)
    assert "better than Method 3" in text
    assert "undecided" in text or "equivalent" in text


def test_of_several_training_sets_the_methods_are_spoken_of() -> None:
    rng = np.random.default_rng(0)
    text = conclude(group(rng.random((6, 300)) < 0.9, rng.random((6, 300)) < 0.6), 1.0)
    assert "Of the methods: Method 0 is better than Method 1" in text


@pytest.mark.parametrize("n", [1, 2, 5])
def test_better_is_never_said_without_a_test(n: int) -> None:
    text = conclude(group(*[right(300)] * n), 1.0)
    assert "better than" not in text
    assert "outperforms" not in text
    assert ("5 other methods" in text) == (n == 5)


def method_of(made: Made, kind: str) -> Method:
    return next(method for method in made.data().methods if method.result.method == kind)


def test_a_matrix_has_counts_shares_and_shades(made: Made) -> None:
    rows = confusion(method_of(made, "svm"))["rows"]
    counts = np.array([[count for count, _, _ in row] for row in rows])
    shares = np.array([[share for _, share, _ in row] for row in rows])
    heat = np.array([[level for _, _, level in row] for row in rows])
    assert counts.sum() == 200
    np.testing.assert_allclose(shares, counts / 50)
    assert heat.min() >= 0
    assert heat.max() <= 10
    assert ((heat > 0) == (counts > 0)).all(), "one error is visible"


def test_facts_say_what_a_number_cannot_be_read_without(made: Made, tmp_path: Path) -> None:
    def page(kind: str) -> Page:
        method = method_of(made, kind)
        return Page(made.again(tmp_path / kind, [method.result]))

    assert "toynet · c=" in page("svm").text
    folds = page("centroid").text
    assert "2 models (sd" in folds
    assert ": training images" in folds
    assert "with other training images, too" in folds
    assert "with other training images" not in page("logistic").text
    assert "split · seed 0" in page("logistic").text


def test_key_figures_are_those_the_method_has(made: Made, tmp_path: Path) -> None:
    logistic = method_of(made, "logistic")
    page = Page(made.again(tmp_path / "logistic", [logistic.result]))
    assert f"log loss {logistic.metrics['log_loss']:.4f}" in page.text
    ece = logistic.result.summary["intervals"]["ece"]
    assert f"({ece['low']:.4f} – {ece['high']:.4f})" in page.text
    f1 = logistic.result.summary["intervals"]["macro_f1"]
    assert f"{100 * f1['low']:.2f} – {100 * f1['high']:.2f}" in page.text
    assert "log loss" not in Page(made.again(tmp_path / "svm", made.results[:1])).text


def test_tables_beside_the_page_agree_with_the_results(made: Made) -> None:
    folder = made.page.with_name("toy-tables")
    counted = pd.read_csv(folder / "confusion.csv").groupby("result")["images"].sum()
    assert counted["svm"] == 200
    models = pd.read_csv(folder / "models.csv")
    for result in made.results:
        mine = models[models["result"] == result.name]
        assert mine["accuracy"].tolist() == [s["metrics"]["accuracy"] for s in result.splits]
    assert len(pd.read_csv(folder / "history.csv")) == 8
    assert set(pd.read_csv(folder / "search.csv")["result"]) >= {"svm", "logistic", "knn"}
