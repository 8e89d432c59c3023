"""Paired tests against enumeration, textbook values, scipy and simulation."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from featpipe.errors import ResultError
from featpipe.statistics.paired_tests import DIFFERENT_ROWS, compare_all, holm, paired_test

SETTINGS = settings(deadline=None, max_examples=60, derandomize=True)


def once(correct):
    """Answers of a method that predicted each row once."""
    return np.arange(len(correct)), np.asarray(correct)


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
    test = paired_test(once(a), once(b))
    assert test.method == "McNemar exact"
    assert test.p_value == pytest.approx(p_value, abs=5e-5)
    assert (test.ci_low, test.ci_high) == (
        pytest.approx(low, abs=5e-5),
        pytest.approx(high, abs=5e-5),
    )
    assert (test.a_better, test.b_better) == counts[1:3]
    assert test.difference == pytest.approx((counts[1] - counts[2]) / sum(counts))


correctness = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14)


@SETTINGS
@given(correctness)
def test_one_prediction_per_row_is_mcnemar(pairs):
    a, b = np.array(pairs).T
    test, n = paired_test(once(a), once(b)), len(pairs)
    assert test.p_value == pytest.approx(brute_force([int(x) - int(y) for x, y in pairs if x != y]))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b:
        binomial = stats.binomtest(only_a, only_a + only_b).pvalue
        assert test.p_value == pytest.approx(binomial)
    assert (test.a_better, test.b_better, test.n) == (only_a, only_b, n)
    # Bonett and Price 2012: the Wald interval after adding one row to each of the two counts.
    p12, p21 = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    reach = stats.norm.ppf(0.975) * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    assert test.ci_low == pytest.approx(max(-1, p12 - p21 - reach))
    assert test.ci_high == pytest.approx(min(1, p12 - p21 + reach))


@SETTINGS
@given(correctness)
def test_swapping_the_methods_mirrors_everything_but_the_p_value(pairs):
    a, b = np.array(pairs).T
    one, two = paired_test(once(a), once(b)), paired_test(once(b), once(a))
    assert one.p_value == pytest.approx(two.p_value)
    assert one.difference == -two.difference
    assert (one.a_better, one.b_better) == (two.b_better, two.a_better)
    assert one.ci_low == pytest.approx(-two.ci_high)


@SETTINGS
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9),
)
def test_rows_predicted_three_times_are_the_enumeration_too(rights):
    rows = np.repeat(np.arange(len(rights)), 3)
    a = np.concatenate([np.arange(3) < right for right, _ in rights])
    b = np.concatenate([np.arange(3) < right for _, right in rights])
    test = paired_test((rows, a), (rows, b))
    assert test.p_value == pytest.approx(brute_force([x - y for x, y in rights]))
    assert test.difference == pytest.approx(a.mean() - b.mean())
    assert test.ci_low <= test.difference <= test.ci_high
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
    assert paired_test((rows, a), (rows, b)).p_value == pytest.approx(theirs.pvalue, abs=0.02)


def test_order_and_kind_of_row_ids_do_not_matter():
    rng = np.random.default_rng(0)
    ids = np.repeat([f"test/{i}.png" for i in range(40)], 3)
    a, b = rng.random(120) < 0.9, rng.random(120) < 0.6
    order = rng.permutation(120)
    assert paired_test((ids, a), (ids, b)) == paired_test((ids, a), (list(ids[order]), b[order]))


def test_a_method_predicted_once_is_compared_with_one_predicted_ten_times():
    # An untrained method needs no folds: its one answer is compared with the mean of ten.
    rng = np.random.default_rng(0)
    rows = np.tile(np.arange(300), 10)
    a, b = rng.random(3000) < 0.9, rng.random(300) < 0.7
    test = paired_test((rows, a), once(b))
    assert test.difference == pytest.approx(a.mean() - b.mean())
    assert test.p_value < 1e-6
    repeated = paired_test((rows, a), (rows, np.tile(b, 10)))
    assert repeated.p_value == pytest.approx(test.p_value)


def test_rows_weigh_as_much_as_they_have_predictions():
    # Folds that leave out different rows: the difference is still that of the pooled accuracies.
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(60), rng.integers(1, 7, 60))
    a, b = rng.random(len(rows)) < 0.8, rng.random(len(rows)) < 0.7
    test = paired_test((rows, a), (rows, b))
    assert test.difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)


def test_the_same_answers_are_not_distinguished_and_the_interval_has_a_width():
    a = np.arange(100) < 90
    twice = np.arange(100) // 2, a
    for test in (paired_test(once(a), once(a)), paired_test(twice, twice)):
        assert (test.difference, test.p_value) == (0.0, 1.0)
        assert test.ci_low < 0 < test.ci_high


def test_a_huge_difference_has_a_tiny_p_value_without_overflow():
    test = paired_test(once(np.ones(8000, bool)), once(np.zeros(8000, bool)))
    assert test.p_value < 1e-300
    assert test.ci_high == pytest.approx(1.0, abs=1e-3)


def test_false_alarms_are_as_rare_as_promised():
    # Two equally good methods with five models each, rows of different difficulty.
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(150), 5)
    alarms = covered = 0
    for _ in range(300):
        difficulty = rng.beta(2, 0.5, 150)[rows]
        test = paired_test(
            (rows, rng.random(750) < difficulty), (rows, rng.random(750) < difficulty)
        )
        alarms += test.p_value < 0.05
        covered += test.ci_low <= 0 <= test.ci_high
    assert alarms <= 25  # 15 expected; more than 25 would happen once in 200 such tests
    assert covered >= 275


def test_holm_gives_the_known_values():
    # The example of Holm's procedure that R's p.adjust also gives.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.2]) == [0.2]


@SETTINGS
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    adjusted = holm(p_values)
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


def test_compare_all_says_which_pairs_differ_and_which_cannot_be_compared():
    rng = np.random.default_rng(0)
    ids = np.array([f"test/{i}" for i in range(1000)])
    good = rng.random(1000) < 0.95
    named = {
        "good": (ids, good),
        "as good": (ids[::-1], np.roll(good, 1)[::-1]),  # as often right, on other rows
        "bad": (ids, rng.random(1000) < 0.6),
        "elsewhere": (ids[:500], good[:500]),
    }
    pairs = {(pair["a"], pair["b"]): pair for pair in compare_all(named)}
    assert len(pairs) == 6
    assert pairs["good", "as good"]["distinguishable"] is False
    assert pairs["good", "bad"]["distinguishable"] is True
    assert pairs["good", "bad"]["difference"] == pytest.approx(0.35, abs=0.06)
    tested = [pair for pair in pairs.values() if pair["reason"] is None]
    assert [p["p_adjusted"] for p in tested] == holm([p["p_value"] for p in tested])
    for other in ("good", "as good", "bad"):
        pair = pairs[other, "elsewhere"]
        assert pair["reason"] == DIFFERENT_ROWS
        assert pair["distinguishable"] is pair["p_value"] is pair["difference"] is None
    json.dumps(list(pairs.values()), allow_nan=False)


def test_one_method_has_no_pairs():
    assert compare_all({"alone": once([True, False])}) == []


def test_ten_methods_on_8000_rows_are_compared_in_less_than_a_second():
    rng = np.random.default_rng(0)
    ids = np.array([f"test/{i:05d}" for i in range(8000)])
    easy = rng.beta(4, 0.3, 8000)
    named = {f"method {k}": (ids, rng.random(8000) < easy) for k in range(10)}
    start = time.process_time()
    assert len(compare_all(named)) == 45
    assert time.process_time() - start < 1.0


def test_different_rows_are_refused_with_what_is_shared():
    with pytest.raises(ResultError, match="different rows") as error:
        paired_test((["a", "b"], [True, True]), (["b", "c"], [True, True]))
    assert "1 shared" in str(error.value)
    with pytest.raises(ResultError, match="at least one value"):
        paired_test(([], []), ([], []))
