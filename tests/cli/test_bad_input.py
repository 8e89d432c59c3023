"""What is wrong at each door is told on the command line: what, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

MODEL = "--model glyphnet --device cpu --runtime torch"


@pytest.fixture
def told(run: Any) -> Callable[..., str]:
    """Return a function that runs a command line and returns its error, which is no traceback."""

    def call(line: str, code: int = 2) -> str:
        ended = run(line)
        assert ended.code == code, ended.err
        assert re.search("^error: ", ended.err, re.MULTILINE)
        assert "Traceback" not in ended.err
        return ended.err

    return call


@pytest.fixture
def photos(run: Any, tmp_path: Path) -> str:
    """A folder of two classes, eight images each, in the current folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        folder = tmp_path / "photos" / ("ant", "bee")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return "photos"


@pytest.mark.parametrize(
    ("missing", "line", "extra"),
    [
        ("timm", "extract --model timm:resnet18 --dataset digits", "timm"),
        ("transformers", "extract --model hf:facebook/dinov2-base --dataset digits", "hf"),
        ("datasets", "extract --model glyphnet --dataset hf:mnist", "hf"),
        ("nncf", "extract --model glyphnet --dataset digits --precision int8", "int8"),
        ("pyarrow", "embed photos -o vectors.parquet", "parquet"),
    ],
)
def test_an_extra_that_is_missing(
    missing: str, line: str, extra: str, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> Any:
        return None if name == missing else find_spec(name)

    monkeypatch.setattr("featpipe.lazy.find_spec", found)
    assert f'next: pip install "featpipe[{extra}]"' in told(line, code=1)


@pytest.mark.parametrize(
    ("line", "code", "nearest"),
    [
        (f"extract {MODEL.replace('glyphnet', 'glifnet')} --dataset digits", 2, "glyphnet"),
        (f"extract {MODEL} --dataset digitz", 2, "digits"),
        (f"extract {MODEL} --dataset folder:fotos", 1, "photos"),
        (f"extract {MODEL} --dataset csv:lst.csv", 1, "list.csv"),
        (f"extract {MODEL} --dataset hf:fotos --no-download", 1, "photos"),
        (f"extract {MODEL} --dataset folder:photos --split trane", 2, ""),
        (f"extract {MODEL} --dataset folder:photos --classes ant,bea", 2, "bee"),
        (f"extract {MODEL} --dataset folder:photos --layer layr3", 2, "layer3"),
        (f"extract {MODEL} --dataset folder:photos --weights no.safetensors", 1, ""),
        ("extract --model torchvision:resnet5 --weights none --dataset digits", 2, "resnet50"),
        ("probe sklearn.ensemble.RandomForestClasifier", 2, "RandomForestClassifier"),
        ("svm --dataset folder:potos", 1, "folder:photos"),
        ("results show svn", 1, ""),
        ("init mine --data fotos", 1, "photos"),
    ],
)
def test_a_name_that_does_not_exist(
    line: str, code: int, nearest: str, told: Any, run: Any, photos: str
) -> None:
    if "hf:" in line:
        pytest.importorskip("datasets", reason="the extra hf is not installed")
    Path("list.csv").write_text("path,label\nphotos/ant/0.png,ant\nphotos/bee/1.png,bee\n")
    if line.startswith(("svm", "probe")):
        assert run(f"extract {MODEL} --dataset folder:photos -q").code == 0
    error = told(line, code)
    if nearest:
        assert "did you mean" in error
        assert f"{nearest}'" in error


def test_a_model_without_a_pooled_output(told: Any, photos: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    small = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4}
    config = transformers.SegformerConfig(**small)
    transformers.SegformerModel(config).save_pretrained("maps")
    processor = transformers.SegformerImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained("maps")
    how = "--dataset folder:photos --device cpu --runtime torch"
    error = told(f"extract --model hf:maps {how}")
    assert "hf:maps has no class token" in error
    assert "next: --layer :last_hidden_state" in error


def test_a_group_that_covers_everything(told: Any, run: Any, photos: str) -> None:
    how = f"{MODEL} --dataset folder:photos --group-by"
    assert run(f"extract {how} regex:png -q").code == 0
    error = told("svm", code=1)
    assert "in one group" in error
    assert "next: extract with groups that are smaller (--group-by), or with none" in error
    assert "have no group" in told(f"extract {how} regex:jpg", code=1)
    assert "not a valid regular expression" in told(f"extract {how} regex:(")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("preprocessing.StandardScaler", "has no predict()"),
        ("linear_model.Ridge", "not a classifier"),
    ],
)
def test_an_estimator_that_does_not_classify(name: str, says: str, told: Any) -> None:
    assert says in told(f"probe sklearn.{name}")


@pytest.mark.parametrize(
    "line",
    [
        "svm",
        "zeroshot",
        "svm --dataset folder:flat",
        f"finetune {MODEL.replace(' --runtime torch', '')} --dataset folder:flat --epochs 1",
    ],
)
def test_unlabelled_rows_where_labels_are_needed(line: str, told: Any, run: Any) -> None:
    Path("flat").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(f"flat/{number}.png")
    assert run(f"extract {MODEL} --dataset folder:flat -q").code == 0
    error = told(line, code=1)
    if "flat" in line:
        assert "There is no labelled row." in error
        assert "next: sort the images into class folders, or give a CSV a column label" in error
