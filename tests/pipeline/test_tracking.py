"""Tracking into a real MLflow file store and real TensorBoard event files."""

from __future__ import annotations

import pytest

from featpipe.errors import FeatpipeError
from featpipe.evaluation.run import evaluate
from featpipe.pipeline.records import DONE, FAILED, Record
from featpipe.pipeline.task import Task
from featpipe.pipeline.tracking import curves_of, make_tracker, numbers_of
from featpipe.recipe import parse_recipe
from featpipe.steps.old import CentroidStep, CompareStep, Context
from featpipe.workspace import Workspace
from tests.making import sealed

RECIPE = parse_recipe("steps: [{step: centroid, train: a.h5}]", name="tracked")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Return the record of a task whose result has a training history."""
    folder = tmp_path_factory.mktemp("tracked")
    step = CentroidStep(seed=3)
    result = evaluate(step, sealed(folder / "a.h5"), path=folder / "result.json")
    result.extra["history"] = [
        {"epoch": 1, "loss": 1.5, "valid": {"accuracy": 0.5}},
        {"epoch": 2, "loss": 0.5, "valid": {"accuracy": None}},
    ]
    result.save(folder / "result.json")
    task = Task("centroid[seed=3]", "centroid", 1, step)
    return Record(task, DONE, 1.0, "done", (str(result.path),)), result


def failed(record):
    return Record(record.task, FAILED, 1.0, "the process was killed by SIGKILL")


def test_mlflow_file_store_holds_settings_metrics_curves_and_the_file(
    record, tmp_path, monkeypatch
):
    tracking = pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record, result = record
    tracker = make_tracker("mlflow", RECIPE, Context(Workspace(tmp_path)))
    tracker.finished(record, None)
    tracker.finished(failed(record), None)
    tracker.finished(Record(Task("compare", "compare", 2, CompareStep()), DONE), None)

    client = tracking.MlflowClient(tracking_uri=(tmp_path / "data" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("tracked")
    runs = {run.info.status: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"FINISHED", "FAILED"}
    done = runs["FINISHED"]
    assert done.info.run_name == "centroid[seed=3]"
    assert done.data.params["seed"] == "3"
    assert done.data.metrics["accuracy"] == result.summary["accuracy"]["value"]
    losses = client.get_metric_history(done.info.run_id, "history/loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 1.5), (2, 0.5)]
    assert [file.path for file in client.list_artifacts(done.info.run_id)] == ["result.json"]
    assert "SIGKILL" in runs["FAILED"].data.tags["featpipe.why"]


def test_mlflow_store_that_cannot_be_opened_is_explained(tmp_path, monkeypatch):
    pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(FeatpipeError, match="MLflow's store cannot be opened"):
        make_tracker("mlflow", RECIPE, Context(Workspace(tmp_path)))


def test_tensorboard_event_files_hold_metrics_and_curves_once(record, tmp_path):
    accumulating = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra tensorboard is not installed",
    )
    record, result = record
    tracker = make_tracker("tensorboard", RECIPE, Context(Workspace(tmp_path)))
    for _ in range(2):  # a run that is continued must not draw every point twice
        tracker.finished(record, None)
    folder = tmp_path / "data" / "tensorboard" / "tracked" / "centroid-seed-3" / result.key[:8]
    events = accumulating.EventAccumulator(str(folder)).Reload()
    values = [events.Tensors(name) for name in ("accuracy", "history/loss")]
    numbers = [
        [(event.step, pytest.approx(event.tensor_proto.float_val[0])) for event in series]
        for series in values
    ]
    assert numbers == [[(0, result.summary["accuracy"]["value"])], [(1, 1.5), (2, 0.5)]]


def test_a_result_that_is_gone_is_noted_and_stops_nothing(record, tmp_path):
    pytest.importorskip("tensorboard.summary", reason="the extra tensorboard is not installed")
    record, _ = record
    notes = []

    class Listener:
        note = staticmethod(notes.append)

    tracker = make_tracker("tensorboard", RECIPE, Context(Workspace(tmp_path), Listener()))
    tracker.finished(Record(record.task, DONE, paths=(str(tmp_path / "gone.json"),)), None)
    assert notes
    assert "centroid[seed=3]" in notes[0]


def test_only_finite_numbers_are_tracked(record):
    _, result = record
    assert all(isinstance(value, float) for value in numbers_of(result).values())
    assert list(curves_of(result)) == [
        ("history/loss", 1, 1.5),
        ("history/valid/accuracy", 1, 0.5),
        ("history/loss", 2, 0.5),
    ]
