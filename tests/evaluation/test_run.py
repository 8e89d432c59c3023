"""From stores to a Result: what it holds, when it is made again, and that it comes out the same."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featpipe.clean import find_unneeded
from featpipe.errors import UsageError
from featpipe.evaluation import fitting
from featpipe.evaluation.models import load_model
from featpipe.evaluation.result import Result
from featpipe.evaluation.run import set_up
from featpipe.evaluation.verify import verify_result
from featpipe.probes.logistic import Logistic
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.neighbours import Knn
from featpipe.probes.solvers import BatchedLinear
from featpipe.probes.svm import Svm
from featpipe.probes.zeroshot import Zeroshot
from featpipe.reporting.step import Report, changed_files
from featpipe.steps import options_of
from tests.evaluation.methods import context, evaluate, evaluated, numbers, pair
from tests.stores import content, sealed

STEPS = [Svm(c=(1e-3, 1e-1)), Logistic(c=(1e-3, 1e-1)), Knn(k=(1, 5)), Centroid()]


@pytest.fixture
def workspace(tmp_path):
    """A folder with a training and a test store where commands look for them."""
    pair(tmp_path / "data" / "features" / "toy" / "toynet")
    return tmp_path


def run(step, folder):
    outcome = step.run(context(folder))
    return outcome, Result.load(outcome.paths[0])


# -- the same numbers again ------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_two_runs_differ_in_nothing_but_times(tmp_path, step):
    train, test = pair(tmp_path)
    texts, files = [], []
    for name in ("one", "two"):
        result = evaluated(step, tmp_path / name, train, test)
        content = json.loads(result.path.read_text())
        for split in content["splits"]:
            del split["seconds"]
        for key in ("created", "environment", "digest"):
            del content[key]
        del content["digests"]["model"]  # a skops file holds addresses of objects
        content["cost"] = {k: v for k, v in content["cost"].items() if "seconds" not in k}
        texts.append(json.dumps(content))
        files.append(result.path.with_name(result.files["predictions"]).read_bytes())
    assert texts[0] == texts[1]
    assert files[0] == files[1]


def test_the_number_of_jobs_does_not_show_in_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "workers_for", lambda splits, probe, jobs: jobs)
    train, test = pair(tmp_path)
    step = Logistic(c=(1e-3, 1e-1), train_per_class=(2, 5), repeats=2)
    alone = evaluated(step, tmp_path / "alone", train, test, jobs=1)
    both = evaluated(step, tmp_path / "both", train, test, jobs=2)
    assert numbers(alone) == numbers(both)
    for name in ("scores", "predicted", "row", "split"):
        mine, other = (getattr(result.predictions(), name) for result in (alone, both))
        np.testing.assert_array_equal(mine, other)


def test_another_seed_draws_other_rows(tmp_path):
    store = sealed(tmp_path / "s.h5", noise=4.0)
    one, two = (evaluate(Centroid(seed=seed), store) for seed in (0, 1))
    assert numbers(one) != numbers(two)
    assert one.key != two.key


# -- up to date ------------------------------------------------------------------------------------


def test_what_is_there_is_not_computed_again(workspace):
    first, made = run(Centroid(), workspace)
    second, found = run(Centroid(), workspace)
    assert (first.status, second.status) == ("done", "up to date")
    assert made == found
    assert second.facts == first.facts


def test_force_computes_again_and_gives_the_same(workspace):
    _, made = run(Centroid(), workspace)
    outcome, again = run(Centroid(force=True), workspace)
    assert outcome.status == "done"
    assert outcome.paths[0] == made.path
    assert again.summary == made.summary


@pytest.mark.parametrize(
    ("step", "other"),
    [
        (Svm(), Svm(c=(0.1,))),
        (Svm(), Svm(max_iter=4000)),
        (Svm(), Svm(validation="kfold:2")),
        (Svm(), Svm(protocol="kfold:3")),
        (Svm(), Svm(train_per_class=(2,))),
        (Svm(), Svm(seed=1)),
        (Svm(), Logistic()),
    ],
)
def test_what_changes_numbers_has_a_name_of_its_own(tmp_path, step, other):
    stores = pair(tmp_path)
    assert set_up(step, *stores).name != set_up(other, *stores).name


def test_what_changes_no_number_does_not(tmp_path):
    train, test = pair(tmp_path)
    name = set_up(Svm(), train, test).name
    for other in (Svm(title="Mine"), Svm(force=True), Svm(save_model=False)):
        assert set_up(other, train, test).name == name
    assert set_up(Svm(protocol="split"), train, test).name == name  # what auto means here
    crossed = Svm(protocol="kfold:3")  # which does not look at the test rows
    assert set_up(crossed, train, test).name == set_up(crossed, train, None).name


def test_the_name_is_that_of_the_key_it_holds(workspace):
    for step in (Svm(protocol="kfold:3"), Svm()):
        _, result = run(step, workspace)
        assert result.path.stem.endswith(result.key[:8])


def test_other_features_give_another_result(tmp_path):
    (tmp_path / "b").mkdir()
    train, test = pair(tmp_path)
    other, _ = pair(tmp_path / "b", dims=9)
    assert set_up(Svm(), train, test).name != set_up(Svm(), other, test).name


def test_a_new_title_is_taken_over_and_nothing_computed_for_it(workspace):
    _, first = run(Centroid(), workspace)
    outcome, result = run(Centroid(title="Mine"), workspace)
    assert (outcome.status, result.title) == ("up to date", "Mine")
    assert result.created == first.created
    assert run(Centroid(), workspace)[1].title == first.title


def test_a_model_that_is_missing_is_made(workspace):
    _, result = run(Centroid(save_model=False), workspace)
    assert "model" not in result.files
    assert not (workspace / "data" / "models").exists()
    outcome, result = run(Centroid(), workspace)
    assert outcome.status == "done"
    assert (workspace / "data" / "models" / result.files["model"]).exists()
    (workspace / "data" / "models" / result.files["model"]).unlink()
    assert run(Centroid(), workspace)[0].status == "done"
    assert run(Centroid(save_model=False), workspace)[0].status == "up to date"


def test_lost_predictions_are_made_again(workspace):
    _, result = run(Centroid(), workspace)
    result.path.with_name(result.files["predictions"]).unlink()
    outcome, result = run(Centroid(), workspace)
    assert outcome.status == "done"
    assert len(result.predictions().ids) == 30


# -- what a result records -------------------------------------------------------------------------


def test_a_result_records_its_inputs(tmp_path):
    train, test = pair(tmp_path)
    result = evaluated(Svm(c=(1e-3, 1e-1)), tmp_path, train, test)
    training = result.protocol.pop("training")
    assert result.protocol == {"name": "split", "splits": 1, "n_test": 30}
    assert (training["splits"], len(training["sets"]), training["rows"]) == ([0], 1, 60)
    assert [store["fingerprint"] for store in result.stores] == [
        train.fingerprint,
        test.fingerprint,
    ]
    (split,) = result.splits
    assert split["chosen"]["c"] in (1e-3, 1e-1)
    assert len(split["search"]) == 2
    assert split["converged"]
    assert set(split["seconds"]) == {"search", "fit", "predict"}
    assert result.cost["parameters_trained"] == 3 * 9
    table = result.predictions()
    assert table.correct.mean() == result.summary["accuracy"]["value"]
    assert table.scores.shape == (30, 3)
    assert table.ids.tolist() == test.ids


def test_a_solver_that_was_stopped_is_reported_in_the_result_and_in_the_terminal(workspace):
    outcome, result = run(Svm(c=(1.0, 10.0), max_iter=1), workspace)
    assert not result.splits[0]["converged"]
    assert any("did not converge in 1 of 1 fits" in note for note in result.notes)
    assert "did not converge" in outcome.message


@pytest.mark.parametrize(
    ("accuracies", "note"),
    [
        ((0.9, 0.8, 0.7), "best c was 0.01, the smallest of the values tried: a smaller one may"),
        ((0.7, 0.8, 0.9), "best c was 10, the largest of the values tried: a larger one may"),
        ((0.7, 0.9, 0.8), None),
        ((0.9, 0.9, 0.7), None),  # a plateau
    ],
)
def test_a_choice_at_the_edge_of_the_grid_is_reported(tmp_path, monkeypatch, accuracies, note):
    found = [{"accuracy": accuracy, "converged": True} for accuracy in accuracies]
    monkeypatch.setattr(BatchedLinear, "search", lambda *_: found)
    result = evaluated(Logistic(c=(0.01, 1.0, 10.0)), tmp_path, *pair(tmp_path))
    said = [text for text in result.notes if "values tried" in text]
    assert len(said) == (note is not None)
    assert all(text.startswith(f"In 1 of 1 fits the {note}") for text in said)


def test_test_rows_that_a_protocol_does_not_use_are_named(tmp_path):
    result = evaluated(Centroid(protocol="kfold:3"), tmp_path, *pair(tmp_path))
    (said,) = [text for text in result.notes if "are not used" in text]
    assert said.startswith("kfold:3 tests parts of the 60 rows of 'train'; the 30 rows of 'test'")


def test_low_shot_curves_rise_and_their_headline_is_the_rightmost_point(tmp_path):
    train, test = pair(tmp_path, 90, 60, noise=3.0)
    result = evaluated(Centroid(train_per_class=(1, 5, 20), repeats=4), tmp_path, train, test)
    curve = result.extra["low_shot"]
    assert [point["train_per_class"] for point in curve] == [1, 5, 20]
    assert all(len(point["accuracies"]) == 4 for point in curve)
    assert curve[0]["mean"] < curve[2]["mean"]
    assert result.summary["spread"]["accuracy"]["mean"] == pytest.approx(curve[2]["mean"])
    assert result.title.endswith("20 per class")
    assert np.isfinite(curve[0]["mean"])  # one row per class: nothing is divided by zero
    assert len(result.predictions().row) == 4 * 60


def test_one_row_per_class_says_that_nothing_was_chosen(tmp_path):
    train, test = pair(tmp_path)
    result = evaluated(Svm(train_per_class=(1, 5), repeats=2), tmp_path, train, test)
    (note,) = [note for note in result.notes if "default" in note]
    assert note.endswith("in 2 of 4 fits: too few rows of a class for validation.")


def test_values_that_need_more_rows_than_validation_leaves_are_not_chosen_from(tmp_path):
    result = evaluated(Knn(k=(9, 11)), tmp_path, *pair(tmp_path, n=12))
    assert result.splits[0]["chosen"]["k"] == 9
    (note,) = [note for note in result.notes if "default" in note]
    assert note.endswith("in 1 of 1 fits: too few training rows to validate any value.")


def test_unlabelled_rows_and_absent_classes_are_reported(tmp_path):
    labels = np.array([0, 1] * 20 + [-1] * 5)
    train = sealed(tmp_path / "train.h5", content(45, labels=labels))
    test = sealed(tmp_path / "test.h5", content(12, labels=np.array([0, 2] * 6), split="test"))
    result = evaluated(Centroid(), tmp_path, train, test)
    assert "5 unlabelled rows of train were left out." in result.notes
    assert "No training row of: cat." in result.notes
    assert "No test row of: bee." in result.notes
    assert result.splits[0]["n_train"] == 40
    assert result.summary["accuracy"]["value"] <= 0.5


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
@pytest.mark.parametrize("classes", [("ant", "bee"), ("other", "bee", "cat")])
def test_two_classes_and_classes_named_other_are_ordinary(tmp_path, step, classes):
    train, test = pair(tmp_path, classes=classes, noise=2.0)
    result = evaluated(step, tmp_path, train, test)
    assert result.summary["accuracy"]["value"] > 0.6
    assert len(result.summary["metrics"]["confusion"]) == len(classes)
    assert result.summary["metrics"]["roc_auc_macro"] > 0.8
    assert not result.dataset["other"]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_imbalanced_classes(tmp_path, step):
    labels = np.array([0] * 50 + [1] * 4 + [2] * 2)
    train = sealed(tmp_path / "train.h5", content(56, labels=labels), noise=1.0)
    test = sealed(tmp_path / "test.h5", content(30, split="test"), noise=1.0)
    result = evaluated(step, tmp_path, train, test)
    metrics, table = result.summary["metrics"], result.predictions()
    recall = [table.correct[table.true == label].mean() for label in range(3)]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recall))
    assert recall[0] > 0.8  # the class with most rows is learned whatever the grid
    assert metrics["roc_auc_macro"] > 0.8  # and the scores tell even classes of two rows apart


def test_cross_validation_uses_the_training_store_alone(tmp_path):
    train, test = pair(tmp_path)
    result = evaluated(Centroid(protocol="kfold:3"), tmp_path, train, test)
    assert [store["path"] for store in result.stores] == [str(train.path)]
    assert result.protocol.pop("training")["own_pool"]
    assert result.protocol == {"name": "kfold:3", "splits": 3, "n_test": 60}
    assert len(set(result.predictions().ids)) == 60


def test_a_layer_that_is_not_stored_is_refused_with_the_ones_that_are(tmp_path):
    train, test = pair(tmp_path)
    with pytest.raises(UsageError, match="no layer 'layer3'") as caught:
        evaluate(Svm(layer="layer3"), train, test)
    assert caught.value.details["expected"] == "avgpool"


def test_a_probe_cannot_be_tested_on_all_rows(tmp_path):
    train, _ = pair(tmp_path)
    with pytest.raises(UsageError, match="it is for zeroshot"):
        evaluate(Svm(protocol="all"), train)


def test_progress_advances_with_every_split(tmp_path):
    class Bar:
        def __init__(self):
            self.steps = []

        def task(self, label, total, done=0):
            self.total = total
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, steps=1, **facts):
            self.steps.append(steps)

    bar = Bar()
    train, test = pair(tmp_path)
    where = dataclasses.replace(context(tmp_path), progress=bar)
    evaluate(Centroid(protocol="kfold:4"), train, test, where)
    assert bar.total == 4
    assert bar.steps == [1, 1, 1, 1]


# -- what was chosen automatically -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "used", "note"),
    [
        ("auto", "split", "Protocol chosen automatically: split, because there is a test split"),
        ("split", "split", None),
        ("kfold:3", "kfold:3", None),
    ],
)
def test_the_protocol_that_was_used_is_named(workspace, asked, used, note):
    outcome, result = run(Centroid(protocol=asked), workspace)
    assert result.protocol["name"] == outcome.facts["protocol"] == used
    assert f", {used})" in outcome.message
    assert any("automatically" in line for line in result.notes) == (note is not None)
    if note:
        assert result.notes[0].startswith(note)
        assert f"note: {note}" in outcome.message


def test_without_test_rows_the_automatic_protocol_is_a_holdout(tmp_path):
    result = evaluate(Centroid(), sealed(tmp_path / "s.h5", noise=4.0))
    assert result.protocol["name"] == "holdout:0.2"
    assert "holdout:0.2, because there is no test split" in result.notes[0]


METHODS = [Svm(), Logistic(), Knn(), Centroid(), Zeroshot()]
AUTOMATIC = [
    pytest.param(step, name, id=f"{step.name} {name}")
    for step in METHODS
    for name, spec in options_of(type(step)).items()
    if spec.affects_result and not spec.selects_input and spec.default in (None, "auto")
    if name not in ("train_per_class", "drop", "groups")  # left out, they mean nothing
]


@pytest.fixture
def stores(tmp_path):
    """Stores for probes and for ``zeroshot``: the classes are three of five source classes."""
    return pair(tmp_path, classes=("s0", "s1", "s2"), n_logits=5)


@pytest.mark.parametrize(("step", "option"), AUTOMATIC)
def test_auto_and_what_it_resolves_to_share_one_key(tmp_path, stores, step, option):
    rows = [f"s{i},{f's{i}' if i < 3 else 'other'}\n" for i in range(5)]
    (tmp_path / "map.csv").write_text("source_id,target\n" + "".join(rows))
    meant = {"layer": "avgpool", "protocol": "split", "validation": "kfold:3", "solver": "batched"}
    meant["map"] = str(tmp_path / "map.csv")
    spelled = step.from_mapping({option: meant[option]})
    assert spelled != step
    assert set_up(spelled, *stores).key == set_up(step, *stores).key


@pytest.mark.parametrize(
    ("n", "options", "validation"),
    [
        (60, {"protocol": "holdout:0.2"}, "kfold:3"),
        (9, {"protocol": "kfold:3"}, "kfold:2"),  # two rows of each class train
        (2010, {"train_per_class": (5,)}, "kfold:3"),
        (2010, {"train_per_class": (1, 5)}, "kfold:3"),  # a single row is never held out
        (2010, {}, "holdout:0.2"),
        (2010, {}, "holdout:.20"),
    ],
)
def test_how_values_are_chosen_is_resolved_on_the_training_rows(tmp_path, n, options, validation):
    train = sealed(tmp_path / "train.h5", content(n))
    test = sealed(tmp_path / "test.h5", content(6, split="test"))
    chosen, spelled = Svm(**options), Svm(**options, validation=validation)
    assert set_up(chosen, train, test).key == set_up(spelled, train, test).key
    other = Svm(**options, validation="holdout:0.5")
    assert set_up(other, train, test).key != set_up(chosen, train, test).key


def test_rows_that_resolve_differently_are_like_no_single_value(tmp_path):
    store = sealed(tmp_path / "s.h5", content(3000))
    curve = {"protocol": "holdout:0.1", "train_per_class": (5, 800)}
    ways = ("auto", "kfold:3", "holdout:0.2")
    assert len({set_up(Svm(**curve, validation=way), store).key for way in ways}) == 3


def test_a_protocol_has_one_spelling(stores):
    short, long = Svm(protocol="holdout:.2"), Svm(protocol="holdout:0.20")
    assert set_up(short, *stores).key == set_up(long, *stores).key
    assert set_up(short, *stores).protocol == "holdout:0.2"


def test_where_nothing_is_chosen_the_way_to_choose_does_not_matter(stores):
    one = {"validation": "kfold:5"}
    assert set_up(Centroid(**one), *stores).key == set_up(Centroid(), *stores).key
    assert set_up(Svm(c=(0.1,), **one), *stores).key == set_up(Svm(c=(0.1,)), *stores).key


def test_numbers_are_equal_where_keys_are(tmp_path):
    train, test = pair(tmp_path)
    auto, spelled = (Svm(c=(1e-3, 1e-1), validation=value) for value in ("auto", "kfold:3"))
    one, other = (evaluate(step, train, test) for step in (auto, spelled))
    assert one.key == other.key
    assert (one.summary, one.splits[0]["search"]) == (other.summary, other.splits[0]["search"])


KEYS = {
    "svm": "108b36edb7880d1f",
    "logistic": "7f7d5421986f8885",
    "knn": "3a6dcf20e99dfad8",
    "centroid": "b5128f66b7b87b79",
    "zeroshot": "2624d38b7f8f68a4",
}


@pytest.mark.parametrize("step", METHODS, ids=lambda step: step.name)
def test_keys_are_the_same_in_every_version(stores, monkeypatch, step):
    """A key that changes makes everybody's results stale: raise ``revision`` if that is meant."""
    monkeypatch.setattr("featpipe.evaluation.run.package_version", lambda package: "1.6.0")
    assert set_up(step, *stores).key[:16] == KEYS[step.name]


# -- what a tracker gets ---------------------------------------------------------------------------


def test_the_facts_of_an_outcome_are_numbers_and_settings(workspace):
    outcome, result = run(Svm(c=(1e-3, 1e-1)), workspace)
    facts = outcome.facts
    assert json.loads(json.dumps(outcome.as_dict()))["metrics"] == facts["metrics"]
    assert facts["accuracy"] == result.summary["accuracy"]
    assert facts["metrics"]["macro_f1"] == result.summary["metrics"]["macro_f1"]
    numbers_only = [*facts["metrics"].values(), *facts["cost"].values()]
    assert all(isinstance(value, int | float) for value in numbers_only)
    cost = facts["cost"]
    parts = [cost[f"{part}_seconds"] for part in ("extract", "search", "fit", "predict")]
    assert all(part > 0 for part in parts)
    assert cost["total_seconds"] == pytest.approx(sum(parts))
    assert facts["settings"] == result.settings
    assert facts["chosen"][0]["c"] in (1e-3, 1e-1)


# -- the backbone's logits as features -------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_probes_can_be_trained_on_the_logits(tmp_path, step):
    train, test = pair(tmp_path, n_logits=5, noise=0.5)
    result = evaluated(step.replace(layer="logits"), tmp_path, train, test)
    assert [store["layer"] for store in result.stores] == ["logits", "logits"]
    assert result.summary["accuracy"]["value"] > 0.8
    assert result.key != evaluate(step, train, test).key
    assert load_model(tmp_path / "data" / "models" / result.files["model"]).layer == "logits"


# -- what a plan asks ------------------------------------------------------------------------------


def test_the_status_follows_the_result(workspace):
    step = Centroid()
    before = step.status(context(workspace))
    assert (before.done, before.why, before.paths) == (False, "no such result yet", ())
    outcome = step.run(context(workspace))
    after = step.status(context(workspace))
    assert (after.done, after.why, after.paths) == (True, "result is there", outcome.paths)
    assert before.key == after.key == outcome.facts["key"][:8]
    assert not Centroid(force=True).status(context(workspace)).done
    assert not Centroid(protocol="kfold:3").status(context(workspace)).done
    Path(outcome.paths[0]).unlink()
    assert not step.status(context(workspace)).done


def test_the_estimate_is_what_the_last_result_took(workspace):
    step = Centroid(dataset="toy")
    assert step.estimate(context(workspace)) is None
    _, result = run(step, workspace)
    seconds, n_bytes, basis = step.estimate(context(workspace))
    parts = [result.cost[f"{part}_seconds"] for part in ("search", "fit", "predict")]
    assert seconds == pytest.approx(sum(parts))
    assert n_bytes == result.cost["model_bytes"]
    assert basis == "(as the last one on toy)"
    assert Svm(dataset="toy").estimate(context(workspace)) is None
    assert Centroid(dataset="zoo").estimate(context(workspace))[2] == "(as the last one on toy)"


# -- two at once, and a disk that is full ----------------------------------------------------------

RUN = """
import sys, resource, signal
from pathlib import Path
from featpipe.reporting.step import Report
from featpipe.probes.svm import Svm
from featpipe.steps import Context
from featpipe.workspace import Workspace
context = Context(Workspace(Path(sys.argv[1])), jobs=1)
if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    for step in (Svm(c=(0.01,), force=True), Report()) if sys.argv[2] == "both" else [
        {"svm": Svm(c=(0.01,), force=True), "report": Report()}[sys.argv[3]]
    ]:
        step.run(context)
except Exception as error:
    print(error)
    raise SystemExit(type(error).__name__)
"""


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_at_once_leave_one_whole_result_and_report(workspace):
    both = [start(workspace, "both") for _ in range(2)]
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, out + err
    there = context(workspace).workspace
    (path,) = there.results.glob("*.json")
    verify_result(path, there.models)
    (page,) = set(there.reports.glob("*.html")) - {there.reports / "index.html"}
    assert changed_files(page) == []
    assert find_unneeded(there) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="limits are those of POSIX")
@pytest.mark.parametrize("step", ["svm", "report"])
def test_a_full_disk_names_the_file_and_leaves_nothing(workspace, step):
    there = context(workspace).workspace
    if step == "report":
        run(Svm(c=(0.01,)), workspace)
    process = start(workspace, "full", step)
    out, err = process.communicate()
    assert err.strip() == "FeatpipeError", out + err
    assert "File too large" in out
    assert f"where: {workspace}" in out
    assert "featpipe clean" in out
    assert find_unneeded(there) == []
    assert not (step == "svm" and list(there.results.glob("*.json")))
    assert (Svm(c=(0.01,)) if step == "svm" else Report()).run(context(workspace)).succeeded
