"""Images of one group are never on both sides of a split, whichever way it is made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featpipe.errors import FitError
from featpipe.evaluation.fitting import fit_splits
from featpipe.evaluation.protocol import (
    group_notes,
    low_shot,
    make_splits,
    resolve_validation,
    validation_folds,
)
from featpipe.finetuning.rows import RowBatches, hold_out
from featpipe.probes.svm import Svm
from tests.evaluation.methods import evaluated
from tests.stores import content, sealed


def grouped(path, groups, labels=None, **more):
    what = content(len(groups), labels=labels, **more)
    manifest = dict(what.manifest)
    manifest["dataset"] = {**manifest["dataset"], "grouped_by": "folder"}
    return sealed(path, replace(what, manifest=manifest, groups=list(groups)), noise=4.0)


def patients(path, n=120, each=5, **more):
    """Return a store in which groups of five images hold all classes."""
    return grouped(path, [f"patient {row // each}" for row in range(n)], **more)


def sides(split):
    return [{part.store.groups[row] for row in part.rows} for part in (split.train, split.test)]


@pytest.mark.parametrize("protocol", ["kfold:2", "kfold:5", "holdout:0.2", "holdout:0.3"])
@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_both_sides(tmp_path, protocol, seed):
    store = patients(tmp_path / "store.h5")
    _, splits = make_splits(protocol, store, None, seed)
    for split in splits:
        train, test = sides(split)
        assert not train & test
        assert len(split.train) + len(split.test) == len(store)
        assert set(split.test.labels) == set(split.train.labels) == {0, 1, 2}
    if protocol.startswith("kfold"):
        tested = np.concatenate([split.test.rows for split in splits])
        assert sorted(tested) == list(range(len(store)))
    else:
        share = float(protocol.partition(":")[2])
        assert abs(len(splits[0].test) / len(store) - share) < 0.06


@pytest.mark.parametrize("seed", range(4))
def test_a_large_group_is_not_held_out_where_a_small_one_fits(tmp_path, seed):
    sizes = [54, 6]
    names = np.repeat(["large", "small"], sizes)
    store = grouped(tmp_path / "store.h5", names, np.arange(60) % 3)
    (split,) = make_splits("holdout:0.2", store, None, seed)[1]
    assert (len(split.train), len(split.test)) == (54, 6)
    assert "10% of the images are held out instead of 20%" in group_notes([split])[0]
    usual = patients(tmp_path / "other.h5")
    assert len(group_notes(make_splits("holdout:0.2", usual, None, seed)[1])) == 1


def test_the_seed_decides_which_groups(tmp_path):
    store = patients(tmp_path / "store.h5")

    def tested(seed):
        return make_splits("holdout:0.2", store, None, seed)[1][0].test.rows.tolist()

    assert tested(0) == tested(0)
    assert len({tuple(tested(seed)) for seed in range(5)}) > 1


def test_groups_of_one_class_each_are_split_within_the_class(tmp_path):
    labels = np.repeat([0, 1, 2], 40)
    store = grouped(tmp_path / "store.h5", [f"{row // 8}" for row in range(120)], labels)
    for split in make_splits("kfold:5", store, None, 0)[1]:
        assert np.bincount(split.test.labels).tolist() == [8, 8, 8]


@pytest.mark.parametrize("spec", ["auto", "kfold:3", "holdout:0.25"])
def test_validation_keeps_groups_together_also_in_low_shot_draws(tmp_path, spec):
    _, splits = make_splits("holdout:0.2", patients(tmp_path / "store.h5"), None, 0)
    for split in [*splits, *low_shot(splits, [10], 2, 0)]:
        groups = split.train.groups
        assert not sides(split)[0] & sides(split)[1]
        folds, on = validation_folds(spec, split.train.labels, groups, 0)
        assert "whole groups" in on
        for train, held_out in folds:
            assert not set(groups[train]) & set(groups[held_out])


def test_the_probe_chooses_on_whole_groups(tmp_path, monkeypatch):
    seen = []
    _, splits = make_splits("holdout:0.2", patients(tmp_path / "store.h5"), None, 0)
    probe = Svm(solver="sklearn", c=(0.1, 1.0))
    strategy = type(probe.strategy(1, 1))
    search = strategy.search

    def spied(self, X, y, folds, *more):
        seen.append(folds)
        return search(self, X, y, folds, *more)

    monkeypatch.setattr(strategy, "search", spied)
    list(fit_splits(splits, probe))
    groups = splits[0].train.groups
    assert len(seen[0]) == 3
    assert not any(set(groups[train]) & set(groups[held]) for train, held in seen[0])


def test_a_fine_tuned_head_holds_out_whole_groups():
    y, groups = np.arange(60) % 3, np.arange(60) // 5
    rows = RowBatches(np.zeros((60, 1)), y, np.arange(60), groups=groups)
    train, valid = hold_out(rows, 0.2, 0)
    assert not set(train.groups) & set(valid.groups)
    assert sorted([*train.rows, *valid.rows]) == list(range(60))
    assert (groups[valid.rows] == valid.groups).all()


def test_the_result_says_what_was_kept_together(tmp_path):
    result = evaluated(Svm(c=(0.1,)), tmp_path, patients(tmp_path / "store.h5"))
    assert result.protocol["grouped_by"] == "folder"
    (note,) = [note for note in result.notes if note.startswith("Grouped by folder: 24 groups")]
    assert "none of which is on both sides" in note


def test_of_folds_and_low_shot_draws_all_groups_are_counted(tmp_path):
    step = Svm(c=(0.1,), protocol="kfold:3", train_per_class=(1,), repeats=1)
    result = evaluated(step, tmp_path, patients(tmp_path / "store.h5"))
    assert any(note.startswith("Grouped by folder: 24 groups") for note in result.notes)


def test_an_official_split_stays_and_groups_that_straddle_it_are_counted(tmp_path):
    train = patients(tmp_path / "train.h5")
    test = grouped(tmp_path / "test.h5", ["patient 3", "patient 4", "new"] * 4, split="test")
    result = evaluated(Svm(c=(0.1,)), tmp_path, train, test)
    (note,) = [note for note in result.notes if note.startswith("Grouped by")]
    assert "25 groups, 2 of which are on both sides of the dataset's own split" in note


def test_groups_of_the_test_rows_alone_straddle_nothing(tmp_path):
    train = sealed(tmp_path / "train.h5", content(30))
    test = grouped(tmp_path / "test.h5", ["a", "b", "c"] * 4, split="test")
    result = evaluated(Svm(c=(0.1,)), tmp_path, train, test)
    assert any("3 groups, none of which" in note for note in result.notes)


@pytest.mark.parametrize("protocol", ["holdout:0.2", "kfold:3"])
def test_one_group_of_everything_is_refused(tmp_path, protocol):
    with pytest.raises(FitError, match="All labelled images are in one group"):
        make_splits(protocol, grouped(tmp_path / "store.h5", ["it"] * 60), None, 0)


def test_too_few_groups_of_a_class_are_refused(tmp_path):
    store = grouped(tmp_path / "store.h5", [f"{row % 3}" for row in range(60)])
    with pytest.raises(FitError, match=r"needs at least 2 labelled groups \(by folder\)") as caught:
        make_splits("holdout:0.2", store, None, 0)
    assert caught.value.details["got"] == "of ant: 1, bee: 1, cat: 1"
    labels, groups = np.arange(12) % 2, np.arange(12) // 4
    with pytest.raises(FitError, match="needs 5 training groups of every class"):
        resolve_validation("kfold:5", labels, groups)
    assert resolve_validation("auto", labels, np.arange(12) % 2) == "none"
