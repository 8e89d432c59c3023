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
    pair_of,
)
from featpipe.statistics.paired_tests import compare_all
from tests.report.conftest import Made, Page


def group(*rights: np.ndarray) -> Group:
    """Return a group of methods with given right answers, best first, judged by the real tests."""
    ids = np.arange(len(rights[0])).astype(str)
    pairs = compare_all({f"m{i}": (ids, right) for i, right in enumerate(rights)})
    methods: list[Any] = []
    for i, right in enumerate(rights):
        verdict = "best"
        if i:
            pair = next(p for p in pairs if {p["a"], p["b"]} == {"m0", f"m{i}"})
            different = pair["distinguishable"]
            verdict = "worse than best" if different else "not distinguishable from best"
        row = {"name": f"m{i}", "n_test": len(ids), "accuracy": float(right.mean()), "low": 0.1,
               "high": 0.9, "verdict": verdict}  # fmt: skip
        methods.append(SimpleNamespace(title=f"Method {i}", row=row))
    return Group("toy", methods, pairs)


def right(n: int, of: int = 400) -> np.ndarray:
    """Return right answers on the first n rows."""
    return np.arange(of) < n


def test_a_clear_winner_is_named_with_its_margin_and_p() -> None:
    text = conclude(group(right(380), right(300)))
    assert "Method 0 has the highest accuracy on the 400 test images of toy, 95.00\u00a0%" in text
    assert "is distinguishable from Method 1, which is 20.00 points behind" in text
    assert "p < 0.001" in text


def test_of_several_worse_methods_the_nearest_is_named() -> None:
    text = conclude(group(right(380), right(300), right(200)))
    assert "from each of the other 2 methods, of which the nearest, Method 1, is 20.00" in text


def test_a_tie_is_called_a_tie() -> None:
    text = conclude(group(right(300), right(299)))
    assert "Method 1 is not distinguishable from it" in text
    assert "behind" not in text


def test_part_tie_part_win() -> None:
    text = conclude(group(right(380), right(379), right(378), right(200)))
    assert "but Method 1 and Method 2 are not distinguishable from it" in text
    assert "distinguishable from Method 3." in text


@pytest.mark.parametrize("n", [1, 2, 5])
def test_better_is_never_said_without_a_test(n: int) -> None:
    text = conclude(group(*[right(300)] * n))
    assert "better than" not in text
    assert "outperforms" not in text
    assert ("4 other methods are not" in text) == (n == 5)


def test_pairs_are_turned_with_all_their_signs() -> None:
    two = group(right(380), right(300))
    forth = pair_of(two, two.methods[0], two.methods[1])
    back = pair_of(two, two.methods[1], two.methods[0])
    assert back["difference"] == -forth["difference"]
    assert (back["ci_low"], back["ci_high"]) == (-forth["ci_high"], -forth["ci_low"])
    assert back["a_better"] == forth["b_better"]


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
    assert "2 models (sd" in page("centroid").text
    assert "split · seed 0" in page("logistic").text


def test_key_figures_are_those_the_method_has(made: Made, tmp_path: Path) -> None:
    logistic = method_of(made, "logistic")
    page = Page(made.again(tmp_path / "logistic", [logistic.result]))
    assert f"log loss {logistic.metrics['log_loss']:.4f}" in page.text
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
