"""The Python API: every name is there, and the functions do what the commands do."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pandas as pd
import pytest
from PIL import Image

import featpipe as fp
from featpipe import api
from featpipe.datasets.dataset import DatasetOptions
from featpipe.errors import UnknownNameError, UsageError
from featpipe.steps import STEPS, options_of
from tests.stores import content, sealed

PROGRESS = "progress: Progress | None = None"
PLACE = "workspace: str | os.PathLike[str] | None = None"
STORES = "train: FeatureStore | Sequence[FeatureStore], test: FeatureStore | None = None"
SIGNATURES = {  # what users have written down: a change is one of the changelog
    "Answer": "(image: str, label: str | None = None, probability: float | None = None, "
    "score: float | None = None, error: str | None = None) -> None",
    "Comparison": "(rows: list[dict[str, Any]], pairs: list[dict[str, Any]], "
    "published: list[dict[str, Any]], notes: list[str], margin: float, "
    "apart: Sequence[str] = ()) -> None",
    "Embedder": "(backbone: Any = 'resnet50', *, "
    "preprocess: Callable[[Any], Any] | None = None, fingerprint: str | None = None, "
    "weights: str | os.PathLike[str] = 'DEFAULT', layer: str | None = None, "
    "image_size: int | None = None, image_fit: str = 'auto', "
    "image_shape: tuple[int, ...] | None = None, "
    "pixel_range: tuple[float, float] | str | None = None, "
    "cache: str | os.PathLike[str] | None = 'memory', device: str = 'auto', "
    "runtime: str | None = None) -> None",
    "FeatureStore": "(path: str | os.PathLike[str], hashes: FileHashes | None = None, *, "
    "at: str | None = None) -> None",
    "compare": "(results: Sequence[Result] | Result, *, published: bool | Sequence[str] = True, "
    "margin: float = 1.0) -> Comparison",
    "evaluate": f"(method: Any, {STORES}, *, {PLACE}, {PROGRESS}, jobs: int = -1, **options: Any)"
    " -> Result",
    "export": "(model: str | os.PathLike[str] | Result, out: str | os.PathLike[str], *, "
    f"{PLACE}, weights: str | None = None, force: bool = False) -> list[Path]",
    "extract": "(dataset: str | Iterable[Any], model: str | None = None, *, "
    "labels: Iterable[Any] | None = None, backbone: Module | None = None, "
    "transform: Callable[[Any], Any] | None = None, name: str | None = None, "
    f"fingerprint: str | None = None, {PLACE}, {PROGRESS}) -> list[FeatureStore]",
    "finetune": f"(dataset: str, model: str, *, {PLACE}, {PROGRESS}) -> Result",
    "predict": "(model: str | os.PathLike[str] | Result, images: Any, *, "
    f"{PLACE}, {PROGRESS}, device: str = 'auto', runtime: str | None = None, "
    "weights: str | None = None) -> list[Answer]",
    "report": f"(results: Sequence[Result] | Result, out: str | os.PathLike[str], *, {PLACE})"
    " -> Path",
    "zeroshot": f"({STORES}, *, {PLACE}, {PROGRESS}) -> Result",
}
TYPED = ("extract", "finetune", "report", "zeroshot")  # have the options of their step, too
# Described where they are.
OTHERS = {"Audit", "FeatpipeError", "LabelMap", "Result", "load_backbone"}


def test_the_names_are_these():
    assert set(fp.__all__) == set(SIGNATURES) | OTHERS
    assert set(fp.__all__) <= set(dir(fp)) & set(api.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signatures_are_these(name):
    function = getattr(api, name)
    signature = inspect.signature(function)
    if name in TYPED:
        code = function.__code__
        own = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        signature = signature.replace(parameters=[signature.parameters[n] for n in own])
    text = str(signature)
    assert re.sub(r"(: |-> )'([^']*)'", r"\1\2", text) == SIGNATURES[name]


@pytest.mark.parametrize("name", TYPED)
def test_options_are_shown_with_their_types_and_defaults(name):
    shown = inspect.signature(getattr(fp, name)).parameters
    for option in options_of(STEPS.get(name)).values():
        if option.name in {"dataset", "model", "train", "test", "results", "out", "name"}:
            continue  # has its own meaning in Python
        one = shown[option.name]
        assert (one.default, one.kind) == (option.default, one.KEYWORD_ONLY)
        assert one.annotation == inspect.formatannotation(option.type)
    assert not any(one.kind is one.VAR_KEYWORD for one in shown.values())


@pytest.mark.parametrize(
    "name",
    [
        *sorted(fp.__all__),
    ],
)
def test_no_module_takes_the_place_of_a_name(name):
    """A module that is imported becomes an attribute of its package."""
    folder = api.Path(fp.__file__).parent
    assert not (folder / name).exists()
    assert not (folder / f"{name}.py").exists()
    assert getattr(fp, name) is getattr(api, name)


def test_names_are_not_imported_before_they_are_used():
    heavy = "[m for m in ('torch', 'sklearn', 'numpy') if m in sys.modules]"
    code = f"import sys, featpipe as fp; fp.extract, fp.predict, fp.FeatpipeError; print({heavy})"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


def test_another_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'extrct'"):
        _ = fp.extrct


@pytest.mark.parametrize("name", api.__all__)
def test_every_name_is_there(name):
    assert getattr(api, name) is not None


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'extrct'"):
        _ = api.extrct


def test_methods_are_evaluated_compared_and_reported(tmp_path):
    train = sealed(tmp_path / "a.h5")
    test = sealed(tmp_path / "b.h5", content(30, split="test"), seed=1)
    knn = api.evaluate("knn", train, test, workspace=tmp_path, k=(1, 3))
    mean = api.evaluate("centroid", train, test, workspace=tmp_path)
    table = api.compare([knn, mean]).table()
    assert set(table["name"]) == {knn.name, mean.name}
    page = api.report([knn, mean], tmp_path / "page", workspace=tmp_path, title="Two methods")
    assert "Two methods" in page.read_text()


def test_the_list_that_extract_returns_and_a_single_result_are_taken(tmp_path):
    train, test = sealed(tmp_path / "a.h5"), sealed(tmp_path / "b.h5", content(30, split="test"))
    mean = api.evaluate("centroid", [test, train], workspace=tmp_path)
    assert (mean.protocol["name"], mean.protocol["n_test"]) == ("split", 30)
    assert [row["name"] for row in api.compare(mean).rows] == [mean.name]
    assert api.report(mean, tmp_path / "page", workspace=tmp_path).exists()


@pytest.mark.parametrize("given", ["a.h5", "", ["a.h5"], None, [[]]])
def test_what_is_no_store_or_result_is_told_what_to_pass(tmp_path, given):
    with pytest.raises(fp.FeatpipeError, match="feature stores") as caught:
        api.evaluate("svm", given, workspace=tmp_path)
    assert "extract(DATASET, MODEL)" in caught.value.details["expected"]
    with pytest.raises(fp.FeatpipeError, match="Only results") as caught:
        api.compare(given)
    assert "evaluate" in caught.value.details["expected"]


def test_a_method_that_does_not_exist_is_named_with_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError) as caught:
        api.evaluate("smv", sealed(tmp_path / "a.h5"))
    assert caught.value.details["next"] == "did you mean 'svm'?"


def test_digits_from_pixels_to_answers(tmp_path):
    """What a notebook does: every function once, in one workspace."""
    here = {"workspace": tmp_path}
    digits = {"dataset": "digits", "model": "glyphnet", "limit": 60, "device": "cpu"}
    train, test = fp.extract(**digits, **here)
    mean = fp.evaluate("centroid", train, test, **here)
    head = fp.finetune(**digits, epochs=1, batch_size=16, **here)
    source = api.open_source("digits", "test", DatasetOptions())
    for row in (0, 1):
        Image.fromarray(source.read(row)).save(tmp_path / f"{row}.png")
    for model in (
        mean,
        mean.name,
        "finetune",
        tmp_path / "data" / "models" / f"{head.name}.safetensors",
    ):
        answers = fp.predict(model, tmp_path, **here)
        assert [api.Path(answer.image).name for answer in answers] == ["0.png", "1.png"]
    table = pd.DataFrame(fp.predict(mean, [tmp_path / "0.png"], **here))
    assert list(table) == ["image", "label", "probability", "score", "error"]
    with pytest.raises(fp.FeatpipeError, match="no model"):
        fp.predict("knn", tmp_path / "0.png", **here)
    assert fp.zeroshot(train, test, policy="restricted", **here).method == "zeroshot"


def test_a_report_of_nothing_says_what_to_pass(tmp_path):
    with pytest.raises(UsageError, match="list of results is empty") as caught:
        fp.report([], tmp_path / "page")
    assert caught.value.details["expected"].startswith("a list of results")
