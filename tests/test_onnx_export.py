"""The exported graph answers as featpipe predict does, from pixels and from files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC

from featpipe import api
from featpipe.backbones.preprocessing import Preprocessing
from featpipe.cli import main
from featpipe.datasets.dataset import DatasetOptions
from featpipe.errors import FeatpipeError, MissingExtraError, ResultError, UsageError
from featpipe.evaluation.models import TrainedModel
from featpipe.prediction import open_predictor
from featpipe.workspace import Workspace
from tests import images

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

DIGITS = {"dataset": "digits", "model": "glyphnet", "limit": 120, "device": "cpu"}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return {"workspace": tmp_path_factory.mktemp("onnx")}


@pytest.fixture(scope="module")
def stores(here):
    return api.extract(**DIGITS, **here)


def answers_of(path, prepared):
    """Return what a graph gives for prepared images (n, 3, S, S): probabilities and labels."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("images", "tensor(uint8)")
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    found, labels = session.run(None, {"images": prepared.permute(0, 2, 3, 1).numpy()})
    assert found.shape == (len(prepared), len(names))
    return found, labels


def assert_same(here, result, path, prepared):
    predictor = open_predictor(Workspace(here["workspace"]), result.name, runtime="torch")
    answers, scores, probabilities = predictor.classify(prepared)
    found, labels = answers_of(path, prepared)
    np.testing.assert_allclose(found, scores if probabilities is None else probabilities, atol=1e-4)
    np.testing.assert_array_equal(labels, answers)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("svm", {}),
        ("svm", {"solver": "sklearn"}),
        ("svm", {"layer": "layer2"}),
        ("logistic", {}),
        ("logistic", {"solver": "sklearn", "c": (0.01,)}),
        ("centroid", {}),
        (LinearDiscriminantAnalysis(), {}),
    ],
    ids=str,
)
def test_probabilities_are_those_of_predict(here, stores, tmp_path, method, options):
    if options.get("layer"):
        stores = api.extract(**DIGITS, layer="layer2", **here)
    result = api.evaluate(method, *stores, **options, **here)
    path, card, script = api.export(result, tmp_path / "model.onnx", **here)
    assert_same(here, result, path, images.random_images(7, 32))
    assert [one.name for one in (card, script)] == ["model.md", "model.py"]


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_and_those_without_training_rows(classes, tmp_path):
    here = {"workspace": tmp_path}
    archive = tmp_path / "few.npz"
    pictures, labels = images.pictures(40, 32), np.arange(40) % 2
    pictures[labels == 1] //= 2
    names = np.array(["ant", "bee", "cat"][:classes])
    np.savez(archive, images=pictures, labels=labels, classes=names)
    torch.manual_seed(0)
    tiny = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, 4), torch.nn.ReLU(), torch.nn.Flatten())
    size = Preprocessing(resize=32, crop=32)
    how = {"backbone": tiny, "transform": size, "name": "tiny", "device": "cpu"}
    (store,) = api.extract(f"npz:{archive}", **how, **here)
    for method in ("svm", "logistic", "centroid"):
        result = api.evaluate(method, store, protocol="holdout:0.3", **here)
        path, *_ = api.export(result, tmp_path / f"{method}.onnx", **here)
        assert_same(here, result, path, images.random_images(5, 32))


def test_the_card_says_what_how_good_and_what_not(here, stores, tmp_path):
    result = api.evaluate("svm", *stores, title="SVM | ours", **here)
    _, card, _ = api.export(result, tmp_path / "model.onnx", **here)
    text = card.read_text()
    accuracy = result.summary["accuracy"]
    for part in (
        f"{100 * accuracy['value']:.2f} %",
        f"{100 * accuracy['low']:.2f}–{100 * accuracy['high']:.2f}",
        result.name,
        result.stores[0]["manifest"]["backbone"]["weights"]["sha256"],
        "one of these 10 classes",
        "SVM &#124; ours",
        "are calibrated on",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (RandomForestClassifier(5), "without linear scores"),
        (SVC(), "without linear scores"),
        ("knn", "without linear scores"),
    ],
    ids=str,
)
def test_what_is_not_linear_is_refused(here, stores, tmp_path, method, why):
    result = api.evaluate(method, *stores, **here)
    with pytest.raises(UsageError, match="cannot be exported") as caught:
        api.export(result, tmp_path / "model.onnx", **here)
    assert why in caught.value.details["got"]
    assert not list(tmp_path.iterdir())


def test_a_fine_tuned_network_is_refused(here, tmp_path):
    head = api.finetune(**DIGITS, epochs=1, batch_size=16, **here)
    with pytest.raises(UsageError, match="cannot be exported"):
        api.export(head, tmp_path / "model.onnx", **here)


def test_places_and_files_that_are_not_ours_are_refused(here, stores, tmp_path):
    result = api.evaluate("centroid", *stores, **here)
    with pytest.raises(UsageError, match=r"Cannot write to 'model\.pt'"):
        api.export(result, tmp_path / "model.pt", **here)
    (tmp_path / "model.md").write_text("my notes")
    with pytest.raises(UsageError, match="did not write"):
        api.export(result, tmp_path / "model.onnx", **here)
    for force in (True, False):  # the second time all files are ours
        api.export(result, tmp_path / "model.onnx", force=force, **here)


def test_a_model_without_its_result_is_refused(here, stores, tmp_path):
    result = api.evaluate("centroid", *stores, **here)
    alone = tmp_path / "alone.npz"
    alone.write_bytes((here["workspace"] / "data/models" / f"{result.name}.npz").read_bytes())
    with pytest.raises(ResultError, match="how good"):
        api.export(alone, tmp_path / "model.onnx", **here)


def test_a_missing_extra_names_the_pip_line(here, tmp_path, monkeypatch):
    find = "featpipe.lazy.find_spec"
    monkeypatch.setattr(find, lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(MissingExtraError, match=r"featpipe\[onnx\]"):
        api.export("svm", tmp_path / "model.onnx", **here)


def test_a_graph_that_answers_otherwise_is_not_written(here, stores, tmp_path, monkeypatch):
    result = api.evaluate("centroid", *stores, **here)
    answer = TrainedModel.answer

    def otherwise(model, features):
        labels, scores, probabilities = answer(model, features)
        return labels, scores, probabilities[:, ::-1]

    monkeypatch.setattr(TrainedModel, "answer", otherwise)
    with pytest.raises(FeatpipeError, match="other probabilities"):
        api.export(result, tmp_path / "model.onnx", **here)
    assert not list(tmp_path.iterdir())


def run_script(script, files, code=0):
    """Return what a script prints for files: lines without their paths, and its errors."""
    line = [sys.executable, str(script), *map(str, files)]
    made = subprocess.run(line, capture_output=True, text=True, check=False)
    assert made.returncode == code, made.stderr
    assert "Traceback" not in made.stderr
    return [one.split("\t")[1:] for one in made.stdout.splitlines()], made.stderr


def test_the_script_says_what_is_missing(here, stores, tmp_path):
    result = api.evaluate("centroid", *stores, **here)
    path, _, script = api.export(result, tmp_path / "model.onnx", **here)
    Image.fromarray(images.pictures(1, 32)[0]).save(tmp_path / "one.png")
    (tmp_path / "notes.png").write_text("no image")
    files = [tmp_path / name for name in ("missing.png", "notes.png", "one.png")]
    answers, said = run_script(script, files, code=1)
    assert len(answers) == 1  # the others do not end the run
    assert [line.split(" ")[0] for line in said.splitlines()] == [str(one) for one in files[:2]]
    assert "usage" in run_script(script, [], code=1)[1]
    path.rename(tmp_path / "elsewhere.onnx")
    assert "beside this script" in run_script(script, files[2:], code=1)[1]
    for package in ("onnxruntime", "PIL"):
        (tmp_path / f"{package}.py").write_text(f"raise ImportError('No module named {package}')")
        said = run_script(script, files[2:], code=1)[1]
        assert f"No module named {package}\n  next: pip install onnxruntime pillow" in said
        (tmp_path / f"{package}.py").unlink()


@pytest.mark.parametrize("fit", ["auto", "crop", "whole"])
def test_the_script_answers_for_files_of_every_shape(fit, tmp_path):
    here = {"workspace": tmp_path}
    weights = images.weights_file(tmp_path / "own.safetensors", model="cifar_resnet20")
    folder = images.photo_folder(tmp_path / "photos", n=8)
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        dark = number % 2  # what a random network can tell apart
        picture = np.asarray(Image.open(path)) // (1 + 3 * dark)
        path.unlink()
        Image.fromarray(picture).save(folder / ("ant" if dark else "bee") / f"{number}.png")
    (folder / "cät").rmdir()
    (store,) = api.extract(
        f"folder:{folder}", "cifar_resnet20", weights=str(weights), fit=fit, device="cpu", **here
    )
    result = api.evaluate("centroid", store, protocol="kfold:2", **here)
    *_, script = api.export(result, tmp_path / "model.onnx", **here)
    files, new = [], tmp_path / "new"
    new.mkdir()
    for number, size in enumerate([(40, 40), (32, 32), (97, 53), (53, 97), (20, 400), (31, 33)]):
        drawn = images.pictures(1, 40, seed=number)[0] // (1 + 3 * (number % 2))
        picture = Image.fromarray(drawn).resize(size)
        files.append(new / f"{number}.png")
        picture.save(files[-1])
    turned, clear, grey = new / "turned.jpg", new / "clear.png", new / "grey.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(turned, exif=exif, quality=95)
    picture.convert("RGBA").copy().save(clear)
    half = picture.convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(half.size))
    half.save(clear)
    picture.convert("L").save(grey)
    files += [turned, clear, grey]
    expected = api.predict(result, files, **here)
    assert {answer.label for answer in expected} == {"ant", "bee"}
    found, _ = run_script(script, files)
    assert [label for label, _ in found] == [answer.label for answer in expected]
    ours = [answer.probability or answer.score for answer in expected]
    np.testing.assert_allclose([float(p) for _, p in found], ours, atol=2e-3)


def test_the_command_writes_three_files(here, stores, tmp_path, capsys):
    api.evaluate("svm", *stores, **here)
    line = ["export", "svm", str(tmp_path / "m.onnx"), "--workspace", str(here["workspace"])]
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == 0
    shown = [api.Path(one) for one in capsys.readouterr().out.split()]
    assert sorted(shown) == sorted(tmp_path.iterdir())
    assert len(shown) == 3


@pytest.mark.long
@pytest.mark.real
def test_200_images_of_stl10_through_resnet18(stl10_resnet18_store, tmp_path, shared):
    here = {"workspace": tmp_path}
    result = api.evaluate("svm", stl10_resnet18_store, protocol="kfold:2", **here)
    path, _, script = api.export(result, tmp_path / "model.onnx", **here)
    source = api.open_source("stl10", "train", DatasetOptions(data=shared / "data"))
    rows = [source.ids.index(name) for name in stl10_resnet18_store.ids]
    predictor = open_predictor(Workspace(tmp_path), result.name, runtime="torch")
    pixels = [source.read(row) for row in rows]
    prepared = torch.stack([predictor.preprocessing.prepare(one) for one in pixels])
    assert len(prepared) == 200
    found, labels = answers_of(path, prepared)
    answered, _, expected = predictor.classify(prepared)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(labels, answered)
    files = []
    for number, one in enumerate(pixels):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(one).save(files[-1])
    answers = api.predict(result, files, **here)
    assert [label for label, _ in run_script(script, files)[0]] == [one.label for one in answers]
