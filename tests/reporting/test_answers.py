"""The first screen answers five questions, and is never stronger than the tests."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from featpipe.reporting.answers import alarms, answers, conclusion, warnings
from featpipe.reporting.data import Group, Method
from featpipe.reporting.suspects import Suspects
from featpipe.statistics.comparison import QUESTIONS, TIED
from featpipe.statistics.paired_tests import Answers
from featpipe.statistics.two_way import TrainingSets
from featpipe.statistics.verdicts import BETTER, WORSE, compare_all


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
        row["features"] = "toynet"
        row |= {"low": 0.1, "high": 0.9, "methods_low": None, "methods_high": None}
        if models > 1:
            row |= {"methods_low": 0.05, "methods_high": 0.95}
        for question in ("models", "methods"):
            test = next((p[question] for p in pairs if (p["a"], p["b"]) == ("m0", f"m{i}")), None)
            word = "highest" if i == 0 else test and test["verdict"]
            row[f"verdict_{question}"] = WORSE if word == BETTER else word
        tied = i and right.mean() == rights[0].mean()
        row["verdict"] = TIED if tied else row["verdict_methods"] or row["verdict_models"]
        row["about"] = QUESTIONS["methods" if row["verdict_methods"] else "models"]
        row |= {"total_seconds": 40.0 * 0.8**i, "converged": True}
        confusion = [[n // 2, 0], [int(n - right.sum() / models), n // 2]]
        table = SimpleNamespace(row=np.tile(np.arange(n), models), ids=np.arange(n))
        table.true = np.arange(n) % 2
        method = Method(
            SimpleNamespace(
                summary={"metrics": {"confusion": confusion}},
                dataset={"classes": ["cat", "dog"], "other": False},
                extra={},
                notes=[],
                splits=[{}] * models,
            ),
            table,
            row,
            f"method-{i}",
            f"Method {i}",
        )
        methods.append(method)
    return Group("toy", methods, pairs)


def said(*rights: np.ndarray, margin: float = 1.0) -> str:
    return in_words(group(*rights), margin)


def in_words(tested: Group, margin: float = 1.0) -> str:
    """Return the conclusion and all answers, with ordinary spaces."""
    text = " ".join([*conclusion(tested, margin), *answers(tested).values()])
    return text.replace("\u00a0", " ").replace("\u202f", " ")


def right(n: int, of: int = 400) -> np.ndarray:
    """Return right answers on the first n rows."""
    return np.arange(of) < n


def test_a_clear_winner_is_named_with_count_lead_and_interval() -> None:
    text = said(right(380), right(300))
    assert "Method 0 has the highest accuracy: 95.0 % (380 of 400)." in text
    assert "It is demonstrably better than Method 1." in text
    assert "20.0 points ahead of Method 1, which is demonstrably worse (between +1" in text
    assert "With 400 test images, the 95 % interval of its accuracy is 10.0 to 90.0 %" in text


def test_the_nearest_of_the_worse_methods_is_named() -> None:
    text = said(right(380), right(300), right(200))
    assert "It is demonstrably better than Method 1 and Method 2." in text
    assert "20.0 points ahead of Method 1" in text
    assert "ahead of Method 2" not in text


def test_equal_accuracies_tie() -> None:
    text = said(right(300), right(300))
    assert "Method 0 and Method 1 tie at 75.0 % (300 of 400)." in text
    assert "No method is demonstrably better" in text
    assert "ahead of" not in text


def test_a_tie_is_no_equality() -> None:
    text = said(np.arange(60) != 0, np.arange(60) != 1)
    assert "tie at 98.3 % (59 of 60)" in text
    assert "points remain possible" in text
    assert "would settle it" in text


def test_undecided_says_what_is_open_and_what_would_settle_it() -> None:
    text = said(right(30, 40), right(28, 40))
    assert "No method is demonstrably better; Method 1 may be as good or better." in text
    assert "5.0 points ahead of Method 1, which could be chance (between −" in text
    assert "points remain possible; about " in text
    assert "test images would settle it" in text


def test_equivalent_says_the_margin() -> None:
    pair = right(3900, 4000), right(3899, 4000)
    assert "Method 1 is equivalent within 1 point." in said(*pair)
    assert "within 2.5 points" in said(*pair, margin=2.5)


def test_part_undecided_part_win() -> None:
    text = said(right(380), right(379), right(374), right(200), right(190))
    assert "; the 2 others are demonstrably worse." in text
    assert "may be as good or better" in text or "equivalent" in text


def test_with_several_training_sets_the_verdict_is_about_the_methods() -> None:
    rng = np.random.default_rng(0)
    text = said(rng.random((6, 300)) < 0.9, rng.random((6, 300)) < 0.6)
    assert "It is demonstrably better than Method 1." in text
    assert "Allowing for other training images, too, it is 5.0 to 95.0 %." in text
    assert "of 300)" not in text, "a mean over models is no count of images"


@pytest.mark.parametrize("n", [1, 2, 5])
def test_better_is_never_said_without_a_test(n: int) -> None:
    text = said(*[right(300)] * n)
    assert "better than" not in text
    assert "outperforms" not in text
    assert ("Method 0, Method 1 and 3 more methods tie" in text) == (n == 5)


def test_a_title_may_hold_anything() -> None:
    many = group(*[right(300)] * 5)
    for number, method in enumerate(many.methods):
        many.methods[number] = replace(method, title=f"{{{number}}} {{x!r}}")
    headline = conclusion(many, 1.0)[0]
    assert headline.startswith("{0} {x!r}, {1} {x!r} and 3 more methods tie at 75.0")


def test_classes_that_are_as_hard_are_named_together() -> None:
    even = group(right(380))
    even.methods[0].metrics["confusion"] = [[190, 10], [10, 190]]
    text = answers(even)["Where does it fail?"].replace("\u00a0", " ")
    assert "cat taken for dog (10 of 200), 1 other pair as often" in text
    assert "Hardest classes: cat and dog, 95.0 % right" in text


def test_all_methods_on_one_backbone_are_named_together() -> None:
    several = group(right(380), right(380), right(378), right(377))
    for method, features in zip(several.methods, ("r50", "r50", "r18", "r18"), strict=True):
        method.row["features"] = features
    text = in_words(several)
    assert "Both methods on r50 tie at" in text
    assert "both methods on r18 may be as good or better" in text


def test_few_errors_are_all_named() -> None:
    few = group(right(398))
    few.methods[0].metrics["confusion"] = [[199, 1], [1, 199]]
    text = answers(few)["Where does it fail?"]
    assert text == "Only 2 errors: cat taken for dog and dog taken for cat."
    few.methods[0].metrics["confusion"] = [[200, 1], [0, 199]]
    assert answers(few)["Where does it fail?"] == "Only 1 error: cat taken for dog."


def test_the_cheapest_is_one_that_may_be_the_best() -> None:
    text = said(right(380), right(379), right(100))
    assert "Cheapest of those that may be the best: Method 1, 32 s from images" in text
    assert "(Method 0: 40 s)" in text
    near = group(right(380), right(379))
    near.methods[1].row["total_seconds"] = 39.0
    cost = answers(near)["At what cost?"].replace("\u00a0", " ")
    assert cost == "Method 0 took 40 s from images to answers; none was clearly faster."


def test_the_classes_that_are_confused_are_named() -> None:
    text = said(right(380))
    assert "Most confused: dog taken for cat (20 of 220). Hardest class: dog, 90.9 % right." in text
    assert "No test image is misclassified." in said(right(400))


def test_warnings_name_what_would_mislead() -> None:
    images = SimpleNamespace(doubt=None)
    poor = group(right(380))
    poor.methods[0].row["converged"] = False
    found = warnings(poor, images)
    assert any("did not converge for Method 0" in one for one in found)
    assert any("not demonstrably better than always answering cat (50.0" in one for one in found)
    account = {"leaked": 4, "test_images": 400, "accuracy": {"value": 0.95}}
    poor.methods[1:] = [copy.copy(poor.methods[0])]
    poor.methods[0].result.extra["leaks"] = {**account, "accuracy_without": None}
    (alarm,) = alarms(poor, Suspects(poor))
    assert alarm.startswith("4 of 400 test images (1.0 %) are exact copies of training images. ")
    assert "no test image is left" in alarm
    better = group(right(380))
    better.methods[0].row["low"] = 0.9
    assert warnings(better, images) == alarms(better, Suspects(better)) == []
    few = group(right(8, of=10))
    assert any("cat and dog: 5 test images each; per-class" in one for one in warnings(few, images))
