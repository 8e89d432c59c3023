"""Intervals against textbook values, scipy, and simulation; never wider or narrower than said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from featpipe.errors import ResultError
from featpipe.statistics.intervals import (
    accuracy_interval,
    bootstrap_mean,
    mean_sd,
    methods_interval,
    wilson,
)
from featpipe.statistics.two_way import TrainingSets, two_way_variance

SETTINGS = settings(deadline=None, max_examples=60, derandomize=True)

# Newcombe 1998, Statistics in Medicine 17: 857–872, table I, method 3 (score).
NEWCOMBE = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


@pytest.mark.parametrize(("successes", "n", "low", "high"), NEWCOMBE)
def test_wilson_gives_the_textbook_limits(successes, n, low, high):
    interval = wilson(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    assert interval.value == successes / n


@SETTINGS
@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_its_estimate_and_stays_between_0_and_1(pair):
    successes, n = pair
    interval = wilson(successes, n)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high
    mirrored = wilson(n - successes, n)
    assert mirrored.low == pytest.approx(1 - interval.high, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(ResultError, match="proportion"):
        wilson(successes, n)


@st.composite
def outcomes(draw):
    """Right or wrong answers to rows that were predicted one to four times."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    rows = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return rng.random(len(rows)) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])), rows


@SETTINGS
@given(outcomes())
def test_interval_contains_the_accuracy_in_which_every_row_weighs_the_same(outcome):
    correct, rows = outcome
    interval = accuracy_interval(correct, rows)
    shares = [correct[rows == row].mean() for row in np.unique(rows)]
    assert interval.value == pytest.approx(np.mean(shares))
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    if len(set(rows)) == len(rows):
        assert interval == wilson(int(correct.sum()), len(correct))


def test_method_is_named_by_how_often_rows_occur():
    right = np.array([True, False, True, True])
    assert accuracy_interval(right, ["a", "b", "c", "d"]).method == "Wilson"
    assert accuracy_interval(right, ["a", "a", "b", "b"]).method.startswith("bootstrap over rows")


def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(0)
    rows = np.repeat([f"r{i}" for i in range(50)], 4)
    correct = rng.random(200) < 0.8
    order = rng.permutation(200)
    assert accuracy_interval(correct, rows) == accuracy_interval(correct[order], rows[order])


def test_agrees_with_the_bootstrap_of_scipy():
    share = np.random.default_rng(0).binomial(10, 0.85, size=300) / 10
    ours = bootstrap_mean(share)
    theirs = stats.bootstrap(
        (share,), np.mean, method="percentile", n_resamples=9_999, random_state=0
    )
    limits = theirs.confidence_interval
    assert ours.low == pytest.approx(limits.low, abs=1e-3)
    assert ours.high == pytest.approx(limits.high, abs=1e-3)


def test_rows_are_drawn_whole_with_all_their_predictions():
    # Easy rows are predicted often, hard rows once; no row weighs more for it.
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, 60)
    rows = np.repeat(np.arange(60), counts)
    correct = rng.random(len(rows)) < counts[rows] / 9
    sums = np.bincount(rows, weights=correct)
    drawn = rng.integers(0, 60, size=(20_000, 60))
    means = (sums / counts)[drawn].mean(axis=1)
    interval = bootstrap_mean(correct, rows)
    assert [interval.low, interval.high] == pytest.approx(
        np.quantile(means, [0.025, 0.975]), abs=5e-3
    )


def test_rows_predicted_ten_times_are_no_more_sure_than_rows_predicted_once():
    # Ten copies of one answer are one answer: counting them as 2000 rows would be three times
    # too sure.
    once = np.random.default_rng(0).random(200) < 0.8
    tenfold = accuracy_interval(np.tile(once, 10), np.tile(np.arange(200), 10))
    plain = accuracy_interval(once, np.arange(200))
    boasting = wilson(int(once.sum() * 10), 2000)
    width = tenfold.high - tenfold.low
    assert width == pytest.approx(plain.high - plain.low, rel=0.1)
    assert width > 2.5 * (boasting.high - boasting.low)


def test_rows_that_are_all_alike_do_not_get_an_interval_of_width_zero():
    perfect = accuracy_interval(np.ones(40, bool), np.tile(np.arange(20), 2))
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(wilson(20, 20).low)
    half = accuracy_interval(np.tile([True, False], 5), np.repeat(np.arange(5), 2))
    assert half.low < 0.5 < half.high
    assert "alike" in half.method


def test_same_seed_same_numbers_and_another_seed_others():
    values = np.random.default_rng(1).random(30)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3).low != bootstrap_mean(values, seed=4).low


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # Rows differ in difficulty (beta distribution, mean 0.9) and are predicted five times each.
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(300), 5)
    covered = 0
    for _ in range(200):
        difficulty = rng.beta(0.9, 0.1, 300)
        correct = rng.random(1500) < difficulty[rows]
        interval = bootstrap_mean(correct, rows, resamples=400)
        covered += interval.low <= 0.9 <= interval.high
    # Of 200 true 95 % intervals 183 to 197 cover with probability 0.986.
    assert 181 <= covered <= 198


# -- other training sets ---------------------------------------------------------------------------


def crossed(n: int, sets: int, seed: int = 0, *, training_sd: float = 0.0):
    """Return right or wrong answers of several models to the same rows, with rows and models."""
    rng = np.random.default_rng(seed)
    ease, skill = rng.normal(1.2, 1, n), rng.normal(0, training_sd, sets)
    right = rng.random((sets, n)) < stats.norm.cdf(ease + skill[:, None])
    return right.ravel() * 1.0, np.tile(np.arange(n), sets), np.repeat(np.arange(sets), n)


def test_the_interval_over_training_sets_is_wilsons_with_fewer_rows():
    n, s = 300, 5
    values, row, model = crossed(n, s, training_sd=0.3)
    training = TrainingSets(tuple("abcde"), 100, 0.2, own_pool=False)
    interval, variance = methods_interval(values, row, model, training)
    assert variance == two_way_variance(values, row, model, training)
    p = values.mean()
    effective = p * (1 - p) / variance.total
    assert effective < n
    t = stats.t.ppf(0.975, variance.df)
    # Wilson's limits solve (x − p)² = t²·x(1 − x)/n.
    quadratic = [1 + t**2 / effective, -2 * p - t**2 / effective, p**2]
    assert [interval.low, interval.high] == pytest.approx(sorted(np.roots(quadratic)))
    assert interval.value == pytest.approx(p)
    assert f"{effective:.0f} effective rows of 300" in interval.method


def test_the_deviation_of_models_is_made_of_training_sets_and_few_rows():
    n, s = 300, 5
    values, row, model = crossed(n, s, training_sd=0.3)
    training = TrainingSets(tuple("abcde"), 100, 0.2, own_pool=False)
    _, variance = methods_interval(values, row, model, training)
    # By hand: the mean squares of a two-way table without replication.
    table = values.reshape(s, n)
    per_model = table.mean(axis=1)
    rest = table - table.mean(axis=0) - per_model[:, None] + table.mean()
    noise = (rest**2).sum() / ((s - 1) * (n - 1)) / n
    assert variance.few_rows_sd**2 == pytest.approx(noise)
    assert variance.training_sd**2 == pytest.approx(per_model.var(ddof=1) - noise)


def test_it_is_wider_than_that_over_rows_alone():
    values, row, model = crossed(400, 4, training_sd=0.5)
    training = TrainingSets(tuple("abcd"), 100, 0.0, own_pool=False)
    both, _ = methods_interval(values, row, model, training)
    alone = accuracy_interval(values, row)
    assert both.low < alone.low < alone.value < alone.high < both.high


@pytest.mark.parametrize("right", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 20])
def test_where_nothing_varies_it_is_no_narrower_than_wilsons(right, n):
    row, model = np.tile(np.arange(n), 3), np.repeat(np.arange(3), n)
    training = TrainingSets(("a", "b", "c"), 50, 0.0, own_pool=False)
    interval, _ = methods_interval(np.full(3 * n, right), row, model, training)
    plain = wilson(int(right * n), n)
    assert interval.low <= plain.low <= interval.value <= plain.high <= interval.high
    assert f"{n} effective rows of {n}" in interval.method


def test_with_one_model_per_row_training_rows_count_as_so_many_more():
    values, row, model = np.ones(40), np.arange(40), np.arange(40) % 4
    training = TrainingSets(tuple("abcd"), 30, 2 / 3, own_pool=True)
    interval, variance = methods_interval(values, row, model, training)
    assert variance.training_sd is None
    effective = 40 / (1 + 40 / 30)
    t = stats.t.ppf(0.975, 39)
    assert interval.low == pytest.approx(1 / (1 + t**2 / effective))
    assert interval.high == 1


def test_values_and_rows_must_fit():
    with pytest.raises(ResultError, match="one row id"):
        bootstrap_mean([1.0, 0.0], [1])
    with pytest.raises(ResultError, match="one row id"):
        accuracy_interval([], [])


def test_mean_and_sample_standard_deviation():
    spread = mean_sd([0.93, 0.95, 0.94])
    assert spread == {"mean": pytest.approx(0.94), "sd": pytest.approx(0.01), "n": 3}  # by n − 1
    assert mean_sd([0.9])["sd"] is None


def test_results_are_ready_for_json():
    parts = [wilson(3, 4).as_dict(), bootstrap_mean([0, 1, 1]).as_dict(), mean_sd([1])]
    assert json.loads(json.dumps(parts, allow_nan=False)) == parts
