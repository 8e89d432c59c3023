"""Tracking into a real MLflow file store and real TensorBoard event files."""

from __future__ import annotations

import pytest

from featpipe.errors import FeatpipeError
from featpipe.progress import Progress
from featpipe.steps import STEPS, Context, Outcome
from featpipe.steps.plan import Plan, Task
from featpipe.steps.recipe import Recipe
from featpipe.steps.tracking import TRACKERS, points_of
from featpipe.workspace import Workspace
from tests.steps.toys import Join, Work
from tests.stores import sealed

TASK = "work[number=3]"


def plan_in(root, **context):
    recipe = Recipe("tracked", "tracked.yaml", (), {})
    tasks = (Task(TASK, "work", 1, Work(number=3)), Task("join", "join", 2, Join()))
    return Plan(recipe, tasks, Context(Workspace(root), **context))


@pytest.fixture
def outcome(tmp_path):
    """Return the outcome of a task that evaluated a method with a training history."""
    path = tmp_path / "result.json"
    path.write_text("{}")
    facts = {
        "key": "0123456789abcdef",
        "title": "Work",
        "settings": {"seed": 3},
        "accuracy": {"value": 0.75, "low": 0.5, "high": 0.9},
        "metrics": {"f1": 0.5, "auc": None, "confusion": [[1]], "flag": True},
        "cost": {"fit_seconds": 1.5},
        "history": [
            {"epoch": 1, "loss": 1.5, "valid": {"accuracy": 0.5}},
            {"epoch": 2, "loss": 0.5, "valid": {"accuracy": None}},
        ],
    }
    return Outcome("done", "done", (path,), facts, task=TASK)


FAILED = Outcome("failed", "the process was killed by SIGKILL", task=TASK)


def test_mlflow_file_store_holds_settings_metrics_curves_and_the_file(
    outcome, tmp_path, monkeypatch
):
    tracking = pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = TRACKERS["mlflow"](plan_in(tmp_path))
    for record in (outcome, FAILED, Outcome("done", "a table", task="join")):
        tracker(record)

    client = tracking.MlflowClient(tracking_uri=(tmp_path / "data" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("tracked")
    runs = {run.info.status: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"FINISHED", "FAILED"}
    done = runs["FINISHED"]
    assert done.info.run_name == TASK
    assert done.data.params["seed"] == "3"
    assert done.data.metrics["accuracy"] == 0.75
    losses = client.get_metric_history(done.info.run_id, "history/loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 1.5), (2, 0.5)]
    assert [file.path for file in client.list_artifacts(done.info.run_id)] == ["result.json"]
    assert "SIGKILL" in runs["FAILED"].data.tags["featpipe.why"]


def test_mlflow_store_that_cannot_be_opened_is_explained(tmp_path, monkeypatch):
    pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(FeatpipeError, match="MLflow's store cannot be opened"):
        TRACKERS["mlflow"](plan_in(tmp_path))


def test_tensorboard_event_files_hold_metrics_and_curves_once(outcome, tmp_path):
    accumulating = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra tensorboard is not installed",
    )
    for _ in range(2):  # a run that is continued must not draw every point twice
        TRACKERS["tensorboard"](plan_in(tmp_path))(outcome)
    folder = tmp_path / "data" / "tensorboard" / "tracked" / "work-number-3" / "01234567"
    events = accumulating.EventAccumulator(str(folder)).Reload()
    values = [events.Tensors(name) for name in ("accuracy", "history/loss")]
    numbers = [
        [(event.step, pytest.approx(event.tensor_proto.float_val[0])) for event in series]
        for series in values
    ]
    assert numbers == [[(0, 0.75)], [(1, 1.5), (2, 0.5)]]


def test_a_tracker_that_fails_is_noted_and_stops_nothing(outcome, tmp_path):
    pytest.importorskip("tensorboard.summary", reason="the extra tensorboard is not installed")
    notes = []
    progress = Progress(lambda event: notes.append(event.message))
    (tmp_path / "data").write_text("a file where a folder has to be")
    TRACKERS["tensorboard"](plan_in(tmp_path, progress=progress))(outcome)
    assert TASK in notes[0]


def test_the_outcome_of_a_real_probe_has_what_is_tracked(tmp_path):
    step = STEPS.get("centroid")(train=sealed(tmp_path / "a.h5").path)
    outcome = step.run(Context(Workspace(tmp_path), jobs=1))
    numbers = {name: value for name, _, value in points_of(outcome)}
    assert 0 <= numbers["accuracy_low"] <= numbers["accuracy"] <= numbers["accuracy_high"] <= 1
    assert numbers["metrics/balanced_accuracy"] > 0
    assert numbers["cost/fit_seconds"] >= 0


def test_only_finite_numbers_are_tracked(outcome):
    assert list(points_of(outcome)) == [
        ("accuracy", 0, 0.75),
        ("accuracy_low", 0, 0.5),
        ("accuracy_high", 0, 0.9),
        ("metrics/f1", 0, 0.5),
        ("cost/fit_seconds", 0, 1.5),
        ("history/loss", 1, 1.5),
        ("history/valid/accuracy", 1, 0.5),
        ("history/loss", 2, 0.5),
    ]


def test_tensorboard_has_no_place_for_a_failure(tmp_path):
    pytest.importorskip("tensorboard.summary", reason="the extra tensorboard is not installed")
    notes = []
    tracker = TRACKERS["tensorboard"](plan_in(tmp_path, progress=Progress(notes.append)))
    tracker(FAILED)
    assert notes == []
    assert not (tmp_path / "data").exists()
