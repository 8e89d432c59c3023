"""The sentence at the top is never stronger than the tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from featpipe.evaluate.significance import compare_all
from featpipe.report.conclusion import conclude, pair_of
from featpipe.report.material import Group


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


def test_a_tie_is_called_a_tie() -> None:
    text = conclude(group(right(300), right(299)))
    assert "Method 1 is not distinguishable from it" in text
    assert "behind" not in text


def test_part_tie_part_win() -> None:
    text = conclude(group(right(380), right(379), right(200)))
    assert "but Method 1 is not distinguishable from it" in text
    assert "distinguishable from Method 2." in text


@pytest.mark.parametrize("n", [1, 2, 5])
def test_better_is_never_said_without_a_test(n: int) -> None:
    text = conclude(group(*[right(300)] * n))
    assert "better than" not in text
    assert "outperforms" not in text


def test_pairs_are_turned_with_all_their_signs() -> None:
    two = group(right(380), right(300))
    forth = pair_of(two, two.methods[0], two.methods[1])
    back = pair_of(two, two.methods[1], two.methods[0])
    assert back["difference"] == -forth["difference"]
    assert (back["ci_low"], back["ci_high"]) == (-forth["ci_high"], -forth["ci_low"])
    assert back["a_better"] == forth["b_better"]
