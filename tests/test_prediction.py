"""Saved models answer for new images what they answered for the same images when tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featpipe import api
from featpipe.cli import main
from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.errors import DataError, ResultError, UsageError, WeightsError
from featpipe.evaluation.result import Result
from featpipe.extraction import Extract
from featpipe.finetuning.step import Finetune
from featpipe.prediction import (
    Answer,
    find_model,
    images_of,
    open_predictor,
    predict,
    write_answers,
)
from featpipe.probes.svm import Svm
from featpipe.probes.zeroshot import Zeroshot
from featpipe.steps import Context
from featpipe.workspace import Workspace
from tests import images

DIGITS = {"model": "glyphnet", "dataset": "digits", "limit": 60, "device": "cpu"}


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    context = Context(Workspace(tmp_path_factory.mktemp("predict")), jobs=1)
    Extract(**DIGITS).run(context)
    return context


def trained(step, context):
    return Result.load(step.run(context).paths[0])


@pytest.fixture(
    scope="module",
    params=[Svm(), Finetune(**DIGITS, epochs=2, batch_size=16, dtype="float32")],
    ids=["probe", "head"],
)
def result(request, context):
    return trained(request.param, context)


@pytest.fixture(scope="module")
def pictures(context):
    """Write the tested images as files and return their paths by id."""
    source = open_source("digits", "test", DatasetOptions())
    folder = context.workspace.root / "new"
    folder.mkdir()
    paths = {}
    for row, name in enumerate(source.ids):
        paths[name] = folder / f"{row}.png"
        Image.fromarray(np.asarray(source.read(row))).save(paths[name])
    return paths


def test_new_images_get_the_tested_answers(result, context, pictures):
    table = result.predictions()
    names = table.ids[table.row].tolist()
    predictor = open_predictor(context.workspace, result.name)
    answers = predict(predictor, [pictures[name] for name in names])
    classes = result.dataset["classes"]
    assert [answer.label for answer in answers] == [classes[i] for i in table.predicted]
    expected = table.scores[np.arange(len(names)), table.predicted]
    np.testing.assert_allclose([a.score for a in answers], expected, atol=1e-3)
    if result.method != "svm":  # a head's own probabilities
        assert {answer.probability for answer in answers} == {None}
        return
    probabilities = np.array([answer.probability for answer in answers])
    assert ((probabilities > 0.1) & (probabilities <= 1)).all()
    assert abs(probabilities.mean() - (table.predicted == table.true[table.row]).mean()) < 0.15


def test_a_folder_is_answered_and_written_down(result, context, pictures, tmp_path, capsys):
    folder = next(iter(pictures.values())).parent
    name = "svm" if result.method == "svm" else "finetune"
    for out in (tmp_path / "answers.csv", tmp_path / "answers.json"):
        line = ["predict", name, str(folder), "--out", str(out)]
        with pytest.raises(SystemExit) as ended:
            main([*line, "--workspace", str(context.workspace.root)])
        assert ended.value.code == 0
        assert "answers → " in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "answers.csv")
    rows = json.loads((tmp_path / "answers.json").read_text())["answers"]
    assert table["image"].tolist() == [row["image"] for row in rows]
    assert len(rows) == len(list(folder.iterdir()))
    assert table["label"].astype(str).tolist() == [row["label"] for row in rows]
    assert list(table.columns) == list(rows[0])
    write_answers([Answer(**row) for row in rows], tmp_path / "answers.parquet")
    stored = pd.read_parquet(tmp_path / "answers.parquet")
    pd.testing.assert_series_equal(stored["score"], table["score"])
    write_answers([], tmp_path / "answers.parquet")  # ours, so it may be replaced
    (tmp_path / "answers.csv").write_text("mine")
    (tmp_path / "mine.parquet").write_bytes(b"mine")
    for out, why in (
        ("answers.csv", "did not write"),
        ("mine.parquet", "did not write"),
        ("answers.xlsx", "Cannot write"),
    ):
        with pytest.raises(UsageError, match=why):
            write_answers([], tmp_path / out)


def test_a_part_of_a_name_is_the_latest_such_model(context):
    models = context.workspace.models
    older = trained(Svm(seed=1, c=(0.01,)), context)
    newer = trained(Svm(seed=2, c=(0.01,)), context)
    for name in ("svm", "glyphnet-svm", "digits-glyphnet-svm"):
        assert find_model(context.workspace, name) == models / newer.files["model"]
    os.utime(models / older.files["model"])
    assert find_model(context.workspace, "svm") == models / older.files["model"]
    with pytest.raises(ResultError, match="no model 'knn'"):
        find_model(context.workspace, "knn")


@pytest.mark.parametrize("ending", [".csv", ".json", ".parquet"])
def test_a_file_whose_name_is_no_text_can_be_written(tmp_path, ending):
    out = tmp_path / f"answers{ending}"
    write_answers([Answer("a\udcff.jpg", "ant")], out)
    assert b"\\xff.jpg" in out.read_bytes().replace(b"\\\\", b"\\")


def test_images_in_memory_get_the_answers_of_their_files(result, context, pictures):
    paths = list(pictures.values())[:3]
    files = api.predict(result, paths, workspace=context.workspace.root)
    opened = [Image.open(paths[0]), np.asarray(Image.open(paths[1])), paths[2]]
    found = api.predict(result, opened, workspace=context.workspace.root)
    assert [one.image for one in found] == ["image 0", "image 1", str(paths[2])]
    assert [one.score for one in found] == [one.score for one in files]
    for several in (np.array([str(path) for path in paths]), np.stack([opened[1]] * 3)):
        assert len(api.predict(result, several, workspace=context.workspace.root)) == 3
    (alone,) = api.predict(result, opened[0], workspace=context.workspace.root)
    assert alone == found[0]
    for wrong in ([paths[0], 3], [np.zeros((4, 4, 2), np.uint8)], [np.zeros((4, 4))]):
        with pytest.raises(UsageError, match=rf"Item {len(wrong) - 1} of the list is not an image"):
            api.predict(result, wrong, workspace=context.workspace.root)


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(DataError, match="no images"):
        images_of([tmp_path])


def test_the_command_names_what_it_could_not_read(result, context, pictures, tmp_path, capsys):
    (tmp_path / "notes.png").write_text("no image")
    good = next(iter(pictures.values()))
    line = ["predict", result.name, str(good), str(tmp_path / "notes.png")]
    with pytest.raises(SystemExit) as ended:
        main([*line, "--json", "--workspace", str(context.workspace.root)])
    assert ended.value.code == 0
    read, unread = json.loads(capsys.readouterr().out.splitlines()[-1])["answers"]
    assert read["label"] in result.dataset["classes"]
    assert unread["label"] is None
    assert "not a readable image" in unread["error"]
    for options, code in (([*line, "--strict"], 3), ([*line[:2], line[3]], 1)):
        with pytest.raises(SystemExit) as ended:
            main([*options, "--workspace", str(context.workspace.root)])
        assert ended.value.code == code
        assert "warning: 1 of" in capsys.readouterr().out


def test_the_process_ends_at_once_with_all_that_it_has_to_say(result, context, pictures, tmp_path):
    good, bad = str(next(iter(pictures.values()))), tmp_path / "notes.png"
    bad.write_text("no image")

    def run(*arguments):
        line = [sys.executable, "-m", "featpipe", "predict", result.name, *arguments]
        line += ["--workspace", str(context.workspace.root)]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    out = tmp_path / "answers.csv"
    written = run(good, "--out", str(out))
    assert (written.returncode, len(out.read_text().splitlines())) == (0, 2)
    shown = run(good, str(bad), "--strict")
    assert shown.returncode == 3
    assert good in shown.stdout
    assert "warning: 1 of 2" in shown.stdout
    wrong = run(good, "--device", "cuda:99")
    assert wrong.returncode == 2
    assert "No CUDA device 99 was found" in wrong.stderr


@pytest.mark.timeout(60)
def test_a_fifo_is_answered_at_once(result, context, tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    (answer,) = predict(open_predictor(context.workspace, result.name), [tmp_path / "x.jpg"])
    assert "it is a FIFO" in answer.error


def test_an_unknown_model_is_named_with_the_nearest(result, context):
    with pytest.raises(ResultError, match="no model") as caught:
        open_predictor(context.workspace, f"{result.name}x")
    assert result.name in str(caught.value)
    part = "svm" if result.method == "svm" else "finetune"
    with pytest.raises(ResultError, match=f"did you mean '{part}'"):
        open_predictor(context.workspace, f"{part}n")


def test_a_result_without_a_model_says_why(context):
    untrained = trained(Zeroshot(), context)
    with pytest.raises(ResultError, match="'zeroshot' trains no model") as caught:
        open_predictor(context.workspace, untrained.name)
    assert "featpipe svm" in str(caught.value)
    unsaved = trained(Svm(save_model=False, seed=7), context)
    with pytest.raises(ResultError, match="has no model") as caught:
        open_predictor(context.workspace, f"{unsaved.name}.json")
    assert "without --no-save-model" in str(caught.value)
    result = Result.load(unsaved.path)
    result.extra["not_saved"] = "skops does not trust a type"
    result.save(unsaved.path)
    with pytest.raises(ResultError, match="could not be saved") as caught:
        open_predictor(context.workspace, unsaved.name)
    assert "skops does not trust a type" in str(caught.value)


@pytest.mark.parametrize("images", [None, 3])
def test_what_is_no_image_is_named(images):
    with pytest.raises(UsageError, match="no images"):
        images_of(images)


def test_other_weights_than_those_of_the_training_are_refused(result, context, tmp_path):
    other = images.weights_file(tmp_path / "other.safetensors", num_classes=62, model="glyphnet")
    with pytest.raises(WeightsError, match="trained on"):
        open_predictor(context.workspace, result.name, weights=str(other))


@pytest.mark.parametrize("method", ["probe", "head"])
def test_images_are_decoded_as_those_of_the_training(method, tmp_path):
    context = Context(Workspace(tmp_path), jobs=1)
    asked = DIGITS | {"decode": "scaled"}
    if method == "probe":
        Extract(**asked).run(context)
    step = Svm() if method == "probe" else Finetune(**asked, epochs=1, batch_size=16)
    predictor = open_predictor(context.workspace, trained(step, context).name)
    assert predictor.preprocessing.decoded_side == 64
    Image.new("RGB", (400, 320)).save(tmp_path / "large.jpg")
    sides = []

    def looked(path, side):
        sides.append(side)
        return images.pictures(1)[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featpipe.prediction.read_image", looked)
        assert predict(predictor, [tmp_path / "large.jpg"])[0].label
    assert sides == [64]


def test_a_probe_on_int8_features_answers_in_int8(tmp_path, pictures, monkeypatch):
    pytest.importorskip("nncf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    context = Context(Workspace(tmp_path), jobs=1)
    Extract(**DIGITS, precision="int8").run(context)
    result = trained(Svm(), context)
    table = result.predictions()
    names = table.ids[table.row].tolist()
    answers = predict(open_predictor(context.workspace, result.name), [pictures[n] for n in names])
    classes = result.dataset["classes"]
    assert [answer.label for answer in answers] == [classes[i] for i in table.predicted]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(WeightsError, match="int8 network that this") as caught:
        open_predictor(context.workspace, result.name)
    assert "extract the features" in caught.value.details["next"]


def test_the_runtime_is_a_choice_for_the_backbone_of_a_probe(result, context):
    assert open_predictor(context.workspace, result.name, runtime="torch")
    with pytest.raises(UsageError, match=r"runtime|PyTorch"):
        open_predictor(context.workspace, result.name, runtime="torsh")
