"""The variance over training sets and rows: against analysis of variance, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from featpipe.errors import ResultError
from featpipe.statistics.two_way import TrainingSets, Variance, two_way_variance


def sets(n, *, rows=100.0, overlap=0.0, own_pool=False):
    return TrainingSets(tuple(f"set {i}" for i in range(n)), rows, overlap, own_pool)


def crossed(table):
    """Values, rows and models of a table of models × rows."""
    s, n = table.shape
    return table.ravel(), np.tile(np.arange(n), s), np.repeat(np.arange(s), n)


def mean_squares(table):
    """The textbook's two-way analysis of variance without replication."""
    s, n = table.shape
    by_model, by_row = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    left = table - by_model - by_row + table.mean()
    return (
        n * by_model.var(ddof=1),
        s * by_row.var(ddof=1),
        (left**2).sum() / ((s - 1) * (n - 1)),
    )


def test_a_complete_table_is_the_analysis_of_variance():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(6, 1)) + rng.normal(size=(1, 50)) + rng.normal(size=(6, 50))
    models, rows, rest = mean_squares(table)
    variance = two_way_variance(*crossed(table), sets(6))
    assert variance.rows == pytest.approx(rows / 300)
    assert variance.training == pytest.approx(models / 300)  # with the interaction, to be safe
    assert variance.training_sd == pytest.approx(np.sqrt((models - rest) / 50))
    assert variance.few_rows_sd == pytest.approx(np.sqrt(rest / 50))
    # Satterthwaite: squares of the mean squares' parts, each over its degrees of freedom.
    parts = (models / 300) ** 2 / 5 + (rows / 300) ** 2 / 49
    assert variance.df == pytest.approx(variance.total**2 / parts)


def test_the_deviation_over_models_is_split_into_training_sets_and_few_rows():
    rng = np.random.default_rng(1)
    table = (
        0.02 * rng.normal(size=(400, 1)) + rng.normal(size=(1, 900)) + rng.normal(size=(400, 900))
    )
    variance = two_way_variance(*crossed(table), sets(400))
    assert variance.training_sd == pytest.approx(0.02, rel=0.25)
    assert variance.few_rows_sd == pytest.approx(1 / 30, rel=0.05)
    sd = table.mean(axis=1).std(ddof=1)
    assert sd**2 == pytest.approx(variance.training_sd**2 + variance.few_rows_sd**2)


def test_overlapping_training_sets_raise_the_training_part():
    table = np.random.default_rng(2).normal(size=(10, 1)) + np.zeros((10, 40))
    apart = two_way_variance(*crossed(table), sets(10)).training
    shared = two_way_variance(*crossed(table), sets(10, overlap=0.2)).training
    assert shared / apart == pytest.approx((0.1 + 0.2 / 0.8) / 0.1)


def test_models_that_test_each_others_training_rows_have_correlated_parts():
    rng = np.random.default_rng(3)
    table = rng.normal(size=(10, 1)) + rng.normal(size=(10, 40))
    plain = two_way_variance(*crossed(table), sets(10))
    pooled = two_way_variance(*crossed(table), sets(10, own_pool=True))
    cross = (plain.rows * plain.training) ** 0.5
    assert pooled.total == pytest.approx(plain.total + cross)
    assert pooled.df == plain.df


def test_one_model_per_row_is_nadeau_and_bengio():
    values = np.random.default_rng(4).integers(-1, 2, 100).astype(float)
    variance = two_way_variance(
        values, np.arange(100), np.arange(100) % 5, sets(5, rows=80, own_pool=True)
    )
    assert variance.rows == pytest.approx(values.var(ddof=1) / 100)
    assert variance.training == pytest.approx(values.var(ddof=1) / 80)
    assert variance.training_sd is variance.few_rows_sd is None


def test_rows_that_some_models_skip_recover_the_training_part():
    # Folds without a test split: nine of ten models answer each row.
    rng, estimates = np.random.default_rng(5), []
    for _ in range(200):
        table = (
            0.1 * rng.normal(size=(10, 1)) + rng.normal(size=(1, 300)) + rng.normal(size=(10, 300))
        )
        values, row, model = crossed(table)
        kept = row % 10 != model
        found = two_way_variance(values[kept], row[kept], model[kept], sets(10))
        estimates.append(found.training)
    with_interaction = (0.1**2 + 1 / 270) / 10
    assert np.mean(estimates) == pytest.approx(with_interaction, rel=0.1)


def test_it_covers_the_truth_when_both_sides_vary():
    rng, covered = np.random.default_rng(6), 0
    for _ in range(400):
        table = (
            0.1 * rng.normal(size=(8, 1)) + rng.normal(size=(1, 200)) + rng.normal(size=(8, 200))
        )
        variance = two_way_variance(*crossed(table), sets(8))
        reach = stats.t.ppf(0.975, variance.df) * np.sqrt(variance.total)
        covered += abs(table.mean()) < reach
    assert 0.93 * 400 <= covered <= 0.99 * 400


@pytest.mark.parametrize("training", [sets(1), TrainingSets(("a", "a"), 9, 1.0, False)])
def test_one_training_set_says_nothing_about_others(training):
    with pytest.raises(ResultError, match="other training images"):
        two_way_variance([1, 0], np.array([0, 1]), np.array([0, 0]), training)


def test_one_test_row_has_a_variance():
    variance = two_way_variance([1.0, 0.0], np.array([0, 0]), np.array([0, 1]), sets(2))
    assert np.isfinite(variance.total)
    assert variance.total > 0


@pytest.mark.parametrize("design", ["crossed", "pooled", "nested"])
def test_so_many_rows_bring_the_variance_down_to_the_target(design):
    variance = Variance(rows=4.0, training=1.0, design=design)
    for target in (1.5, 3.0, 5.0):
        times = variance.more_rows(target)
        training = 1.0 / times if design == "nested" else 1.0
        assert Variance(4.0 / times, training, design=design).total == pytest.approx(target)
    none = variance.more_rows(0.9)
    assert (none is None) == (design != "nested")
