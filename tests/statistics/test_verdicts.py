"""Verdicts: what is claimed follows from the test, and never contradicts itself."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.statistics.paired_tests import ONE_TRAINING_SET, Answers, between_models
from featpipe.statistics.two_way import TrainingSets
from featpipe.statistics.verdicts import (
    ALPHA,
    BETTER,
    DIFFERENT_ROWS,
    EQUIVALENT,
    UNDECIDED,
    WORSE,
    compare_all,
    holm,
    judge,
    p_text,
)

SETTINGS = settings(deadline=None, max_examples=60, derandomize=True)
OPPOSITE = {BETTER: WORSE, WORSE: BETTER, EQUIVALENT: EQUIVALENT, UNDECIDED: UNDECIDED}

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def once(correct):
    """Answers of a method that predicted each row once."""
    return Answers(np.arange(len(correct)), np.asarray(correct, dtype=bool))


def folds(right):
    """Answers of one model for each fold: ``right`` of shape (models, rows)."""
    s, n = right.shape
    training = TrainingSets(tuple(f"fold {i}" for i in range(s)), 50.0, 0.0, False)
    return Answers(np.tile(np.arange(n), s), right.ravel(), np.repeat(np.arange(s), n), training)


def verdict(a, b, margin=0.01):
    (one,) = judge([between_models(once(a), once(b))], margin)
    return one


def test_holm_gives_the_known_values():
    # The example of Holm's procedure that R's p.adjust also gives.
    assert holm([0.01, 0.04, 0.03, 0.005])[0] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == ([], [])
    assert holm([0.2])[0] == [0.2]


@SETTINGS
@given(p_values, st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    adjusted, _ = holm(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected = set()
    for rank, i in enumerate(order):
        if p_values[i] * (len(p_values) - rank) > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    in_order = [adjusted[i] for i in order]
    assert in_order == sorted(in_order)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


@SETTINGS
@given(p_values)
def test_a_p_value_is_below_its_level_exactly_if_holm_rejects_it(p_values):
    adjusted, levels = holm(p_values)
    rejected = [p < ALPHA for p in adjusted]
    assert [p < level for p, level in zip(p_values, levels, strict=True)] == rejected


def test_the_four_verdicts():
    n = 4000
    right = np.arange(n) < 3600
    assert verdict(right, np.arange(n) < 3300).verdict == BETTER
    assert verdict(np.arange(n) < 3300, right).verdict == WORSE
    assert verdict(right, np.roll(right, 3)).verdict == EQUIVALENT
    few = verdict(right[::40], np.roll(right[::40], 2))
    assert few.verdict == UNDECIDED
    assert few.rows_needed > 100


def test_the_margin_is_the_users():
    a = np.arange(500) < 450
    b = np.roll(a, 4)
    wide, narrow = verdict(a, b, 0.05), verdict(a, b, 0.001)
    assert (wide.verdict, narrow.verdict) == (EQUIVALENT, UNDECIDED)
    assert (wide.low, wide.high, wide.p_value) == (narrow.low, narrow.high, narrow.p_value)


def test_as_many_test_rows_as_it_says_decide_it():
    rng = np.random.default_rng(0)
    a, b = rng.random(300) < 0.85, rng.random(300) < 0.81
    few = verdict(a, b)
    assert few.verdict == UNDECIDED
    times = int(np.ceil(few.rows_needed / 300))
    assert verdict(np.tile(a, times + 1), np.tile(b, times + 1)).verdict != UNDECIDED
    assert verdict(np.tile(a, times - 1), np.tile(b, times - 1)).verdict == UNDECIDED


@SETTINGS
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_interval_and_verdict_never_contradict_each_other(pairs):
    a, b = np.array(pairs).T
    one = verdict(a, b, 0.2)
    assert -1 <= one.low <= one.difference <= one.high <= 1
    if one.verdict in (BETTER, WORSE):
        assert one.low > 0 or one.high < 0
        assert one.p_adjusted < ALPHA
        assert (one.verdict == BETTER) == (a.mean() > b.mean())
    else:
        assert one.low <= 0 <= one.high
        assert one.p_adjusted >= ALPHA
        assert (one.verdict == EQUIVALENT) == (one.low > -0.2 and one.high < 0.2)


@SETTINGS
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_a_verdict_is_antisymmetric(pairs):
    a, b = np.array(pairs).T
    one, two = verdict(a, b, 0.2), verdict(b, a, 0.2)
    assert two.verdict == OPPOSITE[one.verdict]
    assert two.difference == -one.difference
    assert (two.low, two.high) == (pytest.approx(-one.high), pytest.approx(-one.low))
    assert two.p_value == pytest.approx(one.p_value)
    assert two.rows_needed == one.rows_needed


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_handful_of_rows_decides_nothing(n):
    assert verdict(np.ones(n), np.zeros(n)).verdict == UNDECIDED
    assert verdict(np.ones(n), np.ones(n)).verdict == UNDECIDED  # no discordant pair


def four(seed=0, n=400):
    rng = np.random.default_rng(seed)
    shares = {"a": 0.95, "b": 0.93, "c": 0.8, "d": 0.79}
    return {name: folds(rng.random((5, n)) < share) for name, share in shares.items()}


def by_pair(named):
    """Verdicts on both questions by the two names in alphabetical order, the first the subject."""
    found = {}
    for pair in compare_all(named):
        for question in ("models", "methods"):
            one = pair[question]
            turned = pair["a"] > pair["b"]
            word = OPPOSITE[one["verdict"]] if turned else one["verdict"]
            limits = (-one["high"], -one["low"]) if turned else (one["low"], one["high"])
            found[question, *sorted((pair["a"], pair["b"]))] = (word, *np.round(limits, 12))
    return found


def test_the_order_of_the_methods_changes_nothing():
    named = four()
    expected = by_pair(named)
    for order in itertools.permutations(named):
        assert by_pair({name: named[name] for name in order}) == expected


def test_another_method_changes_only_the_correction():
    named = four()
    fewer = {name: named[name] for name in "abc"}
    before = {(p["a"], p["b"]): p for p in compare_all(fewer)}
    after = {(p["a"], p["b"]): p for p in compare_all(named)}
    for names, pair in before.items():
        for question in ("models", "methods"):
            old, new = pair[question], after[names][question]
            for same in ("difference", "p_value", "method"):
                assert old[same] == new[same]
            assert new["p_adjusted"] >= old["p_adjusted"]
            assert new["confidence"] >= old["confidence"]


def test_models_may_differ_where_the_methods_do_not():
    # Training sets vary much: one method got the lucky ones.
    rng = np.random.default_rng(1)
    shares = np.array([0.92, 0.9, 0.75, 0.93, 0.7])[:, None]
    named = {
        "a": folds(rng.random((5, 3000)) < shares),
        "b": folds(rng.random((5, 3000)) < shares[[2, 0, 4, 1, 2]]),
    }
    (pair,) = compare_all(named)
    assert pair["models"]["verdict"] == BETTER
    assert pair["methods"]["verdict"] == UNDECIDED
    assert pair["methods"]["rows_needed"] is None  # no number of test rows makes up for five sets


def test_with_one_training_set_nothing_is_claimed_of_the_methods():
    training = TrainingSets(("only",), 100.0, 0.0, False)
    rng = np.random.default_rng(2)
    named = {
        name: Answers(range(50), rng.random(50) < 0.8, np.zeros(50, int), training) for name in "ab"
    }
    (pair,) = compare_all(named)
    assert pair["methods"] is None
    assert pair["reason_methods"] == ONE_TRAINING_SET
    assert pair["models"]["verdict"]


def test_pairs_with_other_rows_are_not_tested():
    rng = np.random.default_rng(0)
    good = rng.random(1000) < 0.95
    named = {"good": once(good), "elsewhere": once(good[:500]), "bad": once(rng.random(1000) < 0.6)}
    pairs = {(pair["a"], pair["b"]): pair for pair in compare_all(named)}
    assert len(pairs) == 3
    for names in (("good", "elsewhere"), ("elsewhere", "bad")):
        assert pairs[names]["reason"] == DIFFERENT_ROWS
        assert pairs[names]["models"] is pairs[names]["methods"] is pairs[names]["n"] is None
    assert pairs["good", "bad"]["models"]["confidence"] == 0.95  # two pairs were not tests
    json.dumps(list(pairs.values()), allow_nan=False)


def test_one_method_has_no_pairs():
    assert compare_all({"alone": once([True, False])}) == []


def test_a_p_value_is_never_printed_as_zero():
    assert p_text(1e-300) == p_text(0.0) == "p < 1e-300"
    assert p_text(0.041234) == "p = 0.0412"
