"""Paired tests against enumeration, textbook values, scipy and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from featpipe.errors import ResultError
from featpipe.statistics.paired_tests import (
    ONE_TRAINING_SET,
    OTHER_TRAINING_SETS,
    SAME_TRAINING_SET,
    SMALLEST_P,
    Answers,
    between_methods,
    between_models,
)
from featpipe.statistics.two_way import TrainingSets

SETTINGS = settings(deadline=None, max_examples=60, derandomize=True)


def once(correct):
    """Answers of a method that predicted each row once."""
    return Answers(np.arange(len(correct)), np.asarray(correct))


def limits(difference, alpha=0.05):
    """The interval of Bonett and Price, before the test decides about zero."""
    reach = difference.reach(alpha)
    return difference.centre - reach, difference.centre + reach


def brute_force(differences):
    """Share of all sign patterns whose sum is at least as far from zero."""
    observed = abs(sum(differences))
    patterns = list(itertools.product([1, -1], repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(p, differences, strict=True))) for p in patterns]
    return sum(total >= observed for total in sums) / len(patterns)


# Fagerland, Lydersen and Laake 2017, "Statistical analysis of contingency tables", chapter 8:
# airway hyper-responsiveness (Bentur et al. 2009) and complete response (Cavo et al. 2012);
# exact conditional McNemar test, and the Bonett-Price interval of the difference (its second case
# as their R package contingencytables prints it, the first worked out from the formula by hand).
@pytest.mark.parametrize(
    ("counts", "p_value", "low", "high"),
    [((1, 1, 7, 12), 0.0703, -0.5084, -0.0134), ((59, 6, 16, 80), 0.0525, -0.1195, -0.0032)],
)
def test_textbook_tables(counts, p_value, low, high):
    a = np.repeat([True, True, False, False], counts)
    b = np.repeat([True, False, True, False], counts)
    test = between_models(once(a), once(b))
    assert test.method == "McNemar exact"
    assert test.p_value == pytest.approx(p_value, abs=5e-5)
    assert limits(test) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert test.wins == counts[1:3]
    assert test.value == pytest.approx((counts[1] - counts[2]) / sum(counts))


correctness = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14)


@SETTINGS
@given(correctness)
def test_one_prediction_per_row_is_mcnemar(pairs):
    a, b = np.array(pairs).T
    test, n = between_models(once(a), once(b)), len(pairs)
    assert test.p_value == pytest.approx(brute_force([int(x) - int(y) for x, y in pairs if x != y]))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b:
        binomial = stats.binomtest(only_a, only_a + only_b).pvalue
        assert test.p_value == pytest.approx(binomial)
    assert (*test.wins, test.n) == (only_a, only_b, n)
    # Bonett and Price 2012: the Wald interval after adding one row to each of the two counts.
    p12, p21 = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    reach = stats.norm.ppf(0.975) * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    assert limits(test) == (pytest.approx(p12 - p21 - reach), pytest.approx(p12 - p21 + reach))


@SETTINGS
@given(correctness)
def test_swapping_the_methods_mirrors_everything_but_the_p_value(pairs):
    a, b = np.array(pairs).T
    one, two = between_models(once(a), once(b)), between_models(once(b), once(a))
    assert one.p_value == pytest.approx(two.p_value)
    assert (one.value, one.centre) == (-two.value, -two.centre)
    assert one.variance.rows == pytest.approx(two.variance.rows)


@SETTINGS
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9),
)
def test_rows_predicted_three_times_are_the_enumeration_too(rights):
    rows = np.repeat(np.arange(len(rights)), 3)
    a = np.concatenate([np.arange(3) < right for right, _ in rights])
    b = np.concatenate([np.arange(3) < right for _, right in rights])
    test = between_models(Answers(rows, a), Answers(rows, b))
    assert test.p_value == pytest.approx(brute_force([x - y for x, y in rights]))
    assert test.value == pytest.approx(a.mean() - b.mean())
    assert test.n == len(rights)


def test_agrees_with_the_permutation_test_of_scipy():
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(200), 5)
    a, b = rng.random(1000) < 0.85, rng.random(1000) < 0.81
    theirs = stats.permutation_test(
        (a.reshape(200, 5).mean(axis=1), b.reshape(200, 5).mean(axis=1)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9_999,
        random_state=0,
    )
    ours = between_models(Answers(rows, a), Answers(rows, b))
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.02)


def test_order_and_kind_of_row_ids_do_not_matter():
    rng = np.random.default_rng(0)
    ids = np.repeat([f"test/{i}.png" for i in range(40)], 3)
    a, b = rng.random(120) < 0.9, rng.random(120) < 0.6
    order = rng.permutation(120)
    a, b, shuffled = Answers(ids, a), Answers(ids, b), Answers(list(ids[order]), b[order])
    assert between_models(a, b) == between_models(a, shuffled)


def test_a_method_predicted_once_is_compared_with_one_predicted_ten_times():
    # An untrained method needs no folds: its one answer is compared with the mean of ten.
    rng = np.random.default_rng(0)
    rows = np.tile(np.arange(300), 10)
    a, b = rng.random(3000) < 0.9, rng.random(300) < 0.7
    test = between_models(Answers(rows, a), once(b))
    assert test.value == pytest.approx(a.mean() - b.mean())
    assert test.p_value < 1e-6
    repeated = between_models(Answers(rows, a), Answers(rows, np.tile(b, 10)))
    assert repeated.p_value == pytest.approx(test.p_value)


@SETTINGS
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=9))
def test_rows_weigh_equally_however_often_they_were_predicted(rights):
    # Four predictions of a for a row, three of b: the enumeration of the differences of the shares.
    def answers(of, times):
        rows = np.repeat(np.arange(len(rights)), times)
        return Answers(rows, np.concatenate([np.arange(times) < right[of] for right in rights]))

    test = between_models(answers(0, 4), answers(1, 3))
    differences = [3 * right - 4 * other for right, other in rights]
    assert test.value == pytest.approx(np.mean(differences) / 12)
    assert test.p_value == pytest.approx(brute_force(differences))


def test_the_sign_of_the_difference_is_the_sign_of_the_accuracies():
    # Rows that were predicted unequally often: nine times or once. Pooled, b would win.
    rows = np.concatenate([np.repeat(np.arange(10), 9), np.arange(10, 43)])
    a = np.concatenate([np.zeros(90), np.ones(33)]) > 0
    b = np.concatenate([np.ones(90), np.arange(33) < 20]) > 0
    by_row = [np.mean([right[rows == row].mean() for row in range(43)]) for right in (a, b)]
    assert a.mean() < b.mean()
    assert by_row[0] > by_row[1]
    test = between_models(Answers(rows, a), Answers(rows, b))
    assert test.value == pytest.approx(by_row[0] - by_row[1])


def test_the_same_answers_are_not_distinguished_and_the_interval_has_a_width():
    a = np.arange(100) < 90
    twice = Answers(np.arange(100) // 2, a)
    for test in (between_models(once(a), once(a)), between_models(twice, twice)):
        assert (test.value, test.p_value) == (0.0, 1.0)
        low, high = limits(test)
        assert low < 0 < high


def test_a_huge_difference_has_a_tiny_p_value_that_is_not_zero():
    test = between_models(once(np.ones(8000, bool)), once(np.zeros(8000, bool)))
    assert test.p_value == SMALLEST_P
    assert limits(test)[1] == pytest.approx(1.0, abs=1e-3)


def test_the_approximation_for_long_distributions_is_close_to_the_exact_test():
    rng = np.random.default_rng(0)
    for share in (0.5, 0.54, 0.6, 0.65):
        rows = np.repeat(np.arange(400), 10)
        shift = np.repeat(rng.choice([-1, 1], 400, p=[1 - share, share]) * rng.random(400), 10)
        a, b = rng.random(4000) < 0.5 + shift / 2, rng.random(4000) < 0.5
        exact = between_models(Answers(rows, a), Answers(rows, b))
        # The same answers, and one row more whose counts have no common divisor with the others'.
        more = np.concatenate([rows, np.full(9973, 400)])
        finer = (
            Answers(more, np.concatenate([right, np.arange(9973) < count]))
            for right, count in ((a, 5001), (b, 5000))
        )
        close = between_models(*finer)
        assert exact.method.endswith("exact")
        assert close.method.endswith("saddlepoint")
        # The exact distribution has steps of one prediction; half a step is the error that is left.
        assert np.log(close.p_value) == pytest.approx(np.log(exact.p_value), abs=0.15)


def test_rows_may_be_predicted_any_number_of_times():
    # As with many overlapping folds; the least common multiple of 1 … 60 exceeds 64 bits.
    rng = np.random.default_rng(0)
    counts = np.tile(np.arange(1, 61), 2)
    rows = np.repeat(np.arange(120), counts)
    a, b = rng.random(len(rows)) < 0.83, rng.random(len(rows)) < 0.8
    test = between_models(Answers(rows, a), Answers(rows, b))
    differences = (np.bincount(rows, a) - np.bincount(rows, b)) / counts
    flipped = rng.choice([-1, 1], (20_000, 120)) @ differences
    assert test.value == pytest.approx(differences.mean())
    assert test.p_value == pytest.approx(
        np.mean(np.abs(flipped) >= abs(differences.sum())), abs=0.02
    )
    always_right = Answers(rows, np.ones(len(rows)))
    assert between_models(once(np.ones(120)), always_right).wins == (0, 0)


def test_false_alarms_are_as_rare_as_promised():
    # Two equally good methods with five models each, rows of different difficulty.
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(150), 5)
    alarms = covered = 0
    for _ in range(300):
        difficulty = rng.beta(2, 0.5, 150)[rows]
        test = between_models(
            Answers(rows, rng.random(750) < difficulty), Answers(rows, rng.random(750) < difficulty)
        )
        alarms += test.p_value < 0.05
        low, high = limits(test)
        covered += low <= 0 <= high
    assert alarms <= 25  # 15 expected; more than 25 would happen once in 200 such tests
    assert covered >= 275


def folds(right, names="abcd", *, overlap=0.0):
    """Answers of one model per fold: ``right`` of shape (models, rows)."""
    s, n = right.shape
    training = TrainingSets(tuple(names[:s]), 50.0, overlap, False)
    return Answers(np.tile(np.arange(n), s), right.ravel(), np.repeat(np.arange(s), n), training)


def test_the_methods_are_compared_over_training_sets_and_rows():
    rng = np.random.default_rng(1)
    a, b = rng.random((4, 60)) < 0.8, rng.random((4, 60)) < 0.7
    one, other = folds(a), folds(b)
    models = between_models(one, other)
    test = between_methods(one, other, models)
    d = a.astype(float) - b
    # Analysis of variance, by hand; the rows' part is that of Bonett and Price.
    of_sets, of_rows = 60 * d.mean(axis=1).var(ddof=1), models.variance.rows
    training = of_sets / 240
    assert test.variance.training == pytest.approx(training)
    df = (training + of_rows) ** 2 / (training**2 / 3 + of_rows**2 / 59)
    t = test.centre / np.sqrt(training + of_rows)
    assert test.p_value == pytest.approx(2 * stats.t.sf(abs(t), df))
    assert test.value == pytest.approx(a.mean() - b.mean())
    assert (test.p_value < 0.05) == (test.reach(0.05) < abs(test.centre))


def test_the_order_of_models_and_rows_does_not_matter():
    rng = np.random.default_rng(2)
    a, b = rng.random((4, 30)) < 0.8, rng.random((4, 30)) < 0.7
    models = between_models(folds(a), folds(b))
    order = [2, 0, 3, 1]
    turned = folds(b[order], "".join("abcd"[i] for i in order))
    assert between_methods(folds(a), folds(b), models) == between_methods(folds(a), turned, models)


def test_a_method_that_trains_nothing_is_compared_with_one_of_many_training_sets():
    rng = np.random.default_rng(3)
    a, fixed = rng.random((4, 60)) < 0.8, rng.random(60) < 0.7
    one, other = folds(a), once(fixed)
    models = between_models(one, other)
    repeated = folds(np.tile(fixed, (4, 1)))
    assert between_methods(one, other, models) == between_methods(one, repeated, models)
    # Where neither is trained, the models are the methods.
    models = between_models(other, other)
    assert between_methods(other, other, models) is models


@pytest.mark.parametrize(
    ("names", "of_b", "reason"),
    [("a", "a", ONE_TRAINING_SET), ("abcd", "abce", OTHER_TRAINING_SETS),
     ("aaaa", "aaaa", SAME_TRAINING_SET)],
)  # fmt: skip
def test_results_that_cannot_speak_of_the_methods_say_why(names, of_b, reason):
    rng = np.random.default_rng(4)
    a, b = (rng.random((len(names), 20)) < 0.8 for _ in "ab")
    one, other = folds(a, names), folds(b, of_b)
    assert between_methods(one, other, between_models(one, other)) == reason


def test_different_rows_are_refused_with_what_is_shared():
    with pytest.raises(ResultError, match="different rows") as error:
        between_models(Answers(["a", "b"], [True, True]), Answers(["b", "c"], [True, True]))
    assert "1 shared" in str(error.value)
    with pytest.raises(ResultError, match="at least one value"):
        between_models(Answers([], []), Answers([], []))
