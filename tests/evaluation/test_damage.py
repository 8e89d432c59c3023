"""Results, predictions and models that were damaged or forged: noticed before a number is made."""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skops import io as skops_io

from featpipe.errors import FeatpipeError, ResultError
from featpipe.evaluation.assemble import complete_result
from featpipe.evaluation.models import load_model
from featpipe.evaluation.result import ChangedResultError, PredictionTable, Result
from featpipe.evaluation.verify import verify_result
from featpipe.fingerprint import of_file, seal_archive
from featpipe.prediction import open_predictor
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.svm import Svm
from featpipe.statistics.comparison import compare
from featpipe.workspace import Workspace
from tests.damage import NAMES, VARIANTS, damaged, outcome
from tests.evaluation.methods import context, forge


def numbers(result: Result) -> Any:
    values = {k: v for k, v in vars(result).items() if k != "path"}
    table = {k: None if v is None else v.tolist() for k, v in vars(result.predictions()).items()}
    return values, table


def answers(path: Path) -> Any:
    model = load_model(path)
    rows = np.random.default_rng(0).normal(size=(9, model.estimator.n_features_in_))
    facts = {k: v for k, v in vars(model).items() if k != "estimator"}
    return facts, model.estimator.predict(rows.astype(np.float32)).tolist()


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
@pytest.mark.parametrize("file", ["centroid.json", "centroid.predictions.npz"])
def test_a_damaged_result_is_refused_or_unchanged(copy: Workspace, file: str, variant: Any) -> None:
    path = copy.results / "centroid.json"
    whole = numbers(Result.load(path))
    place = copy.results / file
    place.write_bytes(damaged(place.read_bytes(), variant))
    assert outcome(lambda: numbers(Result.load(path)), ResultError) in (None, whole)


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
@pytest.mark.parametrize("file", ["centroid.npz", "knn.skops"])
def test_a_damaged_model_is_refused(copy: Workspace, file: str, variant: Any) -> None:
    path = copy.models / file
    path.write_bytes(damaged(path.read_bytes(), variant))
    assert outcome(lambda: answers(path), ResultError) is None


@pytest.mark.long
@pytest.mark.parametrize(
    "file", ["centroid.json", "centroid.predictions.npz", "centroid.npz", "knn.skops"]
)
def test_no_flipped_bit_is_silent(copy: Workspace, file: str) -> None:
    path = copy.results / "centroid.json"
    place = copy.results / file if (copy.results / file).exists() else copy.models / file
    content = place.read_bytes()
    model = place.parent == copy.models
    read = (lambda: answers(place)) if model else lambda: numbers(Result.load(path))
    whole = read()
    for byte in range(0, len(content), 1 + len(content) // 2000):
        flipped = bytes([content[byte] ^ 1 << byte % 8])
        place.write_bytes(content[:byte] + flipped + content[byte + 1 :])
        assert outcome(read, ResultError) in (None, whole), byte


# -- forged, with a digest that fits ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["predictions", "model", "extra"])
@pytest.mark.parametrize("name", [5, None, "/etc/hostname", "../centroid.json", "a/b.npz"])
def test_files_are_named_beside_the_result(copy: Workspace, kind: str, name: Any) -> None:
    path = copy.results / "centroid.json"
    forge(path, lambda content: content["files"].update({kind: name}))
    with pytest.raises(ResultError, match="damaged") as caught:
        complete_result(path, copy.models)
    assert caught.value.details["got"] == "files"


def set_accuracy(content: dict[str, Any]) -> None:
    content["summary"]["accuracy"]["value"] = 0.42


def test_an_edited_number_is_named(copy: Workspace) -> None:
    path = copy.results / "svm.json"
    content = json.loads(path.read_text("utf-8"))
    value = content["summary"]["accuracy"]["value"]
    set_accuracy(content)
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ChangedResultError) as caught:
        Result.load(path)
    details = caught.value.details
    assert details["where"] == str(path)
    assert "0.42" in details["got"]
    assert f"{value:.6f}" in details["got"]
    assert "--force" in details["next"]


def test_a_forged_accuracy_is_not_up_to_date_nor_compared_nor_verified(
    original: Any, tmp_path: Path
) -> None:
    shutil.copytree(original.folder, tmp_path / "w")
    there = context(tmp_path / "w")
    step = Svm(c=(0.01,), title="mine")
    path = step.run(there).paths[0]
    assert step.run(there).status == "up to date"
    assert step.replace(title="another").run(there).status == "up to date"
    assert Result.load(path).title == "another"  # a new title has a new digest
    forge(path, set_accuracy)
    for use in (
        lambda: step.run(there),
        lambda: compare([Result.load(path)]),
        lambda: verify_result(path, there.workspace.models),
    ):
        with pytest.raises(ResultError, match="predictions"):
            use()
    assert step.replace(force=True).run(there).status == "done"
    verify_result(path, there.workspace.models)


def test_files_of_another_result_are_refused(copy: Workspace) -> None:
    shutil.copy(copy.results / "svm.predictions.npz", copy.results / "centroid.predictions.npz")
    with pytest.raises(ResultError, match="was changed"):
        Result.load(copy.results / "centroid.json").predictions()
    shutil.copy(copy.models / "svm.npz", copy.models / "centroid.npz")
    with pytest.raises(ResultError, match="was changed"):
        open_predictor(copy, "centroid")


def test_a_result_whose_files_were_changed_is_not_up_to_date(original: Any, tmp_path: Path) -> None:
    shutil.copytree(original.folder, tmp_path / "w")
    there, step = context(tmp_path / "w"), Centroid()
    path = step.run(there).paths[0]
    model = there.workspace.models / f"{path.stem}.npz"
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(ResultError, match=r"model .* was changed"):
        step.run(there)
    step.replace(force=True).run(there)
    table = Result.load(path).predictions()
    table.predicted[0] ^= 1
    table.save(path.with_name(f"{path.stem}.predictions.npz"))
    with pytest.raises(ResultError, match=r"predictions .* was changed"):
        step.status(there)


def test_predictions_of_a_forged_size_take_no_memory(tmp_path: Path) -> None:
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        huge, {"descr": "<i8", "fortran_order": False, "shape": (10**15,)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("ids", "true", "row", "split", "predicted"):
            archive.writestr(f"{name}.npy", huge.getvalue())
    with pytest.raises(ResultError, match="damaged"):
        PredictionTable.load(tmp_path / "a.npz")


def test_a_nested_json_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(ResultError, match="cannot be read"):
        Result.load(tmp_path / "a.json")


# -- odd skops files -------------------------------------------------------------------------------


def rewritten(path: Path, change: Any) -> Path:
    """Return a sealed model whose ``schema.json`` is another."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["schema.json"] = change(parts["schema.json"].decode()).encode()
    odd = path.with_name("odd.skops")
    with zipfile.ZipFile(odd, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    seal_archive(odd)
    return odd


def cyclic(schema: str) -> str:
    content = json.loads(schema)
    first = content["content"]["estimator"]
    first["content"] = {"__class__": "dict", "__module__": "builtins", "__loader__": "DictNode",
                        "content": {"steps": {**first, "content": {}}}, "__id__": first["__id__"],
                        "key_types": content["key_types"]}  # fmt: skip
    return json.dumps(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: "",
        lambda _: "null",
        lambda _: "{}",
        lambda _: "[" * 200_000,
        lambda _: json.dumps({"content": {}, "x": ["y" * 1000] * 1000}),
        lambda text: re.sub('"__class__": "\\w+"', '"__class__": "eval"', text),
        lambda text: text.replace("sklearn.", "os."),
        lambda text: text.replace(".npy", ".npz"),
        lambda text: text.replace("n_features_in_", "n_features"),
        lambda text: text.replace("_fit_X", "coef_"),
        cyclic,
    ],
    ids=[
        *("empty", "null", "object", "nested", "huge", "foreign", "module", "npz"),
        *("no-width", "no-rows", "cyclic"),
    ],
)
def test_an_odd_schema_is_explained(copy: Workspace, change: Any) -> None:
    odd = rewritten(copy.models / "knn.skops", change)
    with pytest.raises(ResultError) as caught:
        load_model(odd)
    assert caught.value.details["where"] == str(odd)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"no archive"])
def test_an_odd_archive_is_explained(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.skops").write_bytes(content)
    with pytest.raises(ResultError, match="cannot be read"):
        load_model(tmp_path / "odd.skops")


def test_an_archive_that_expands_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "bomb.skops"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", bytes(50_000_000))
    with pytest.raises(ResultError, match="compressed"):
        load_model(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 5},
        {"classes": (1, 2, 3)},
        {"classes": ("only one",)},
        {"estimator": 3},
        {"layer": None},
        {"weights": 7},
        {"backbone": "resnet50"},
    ],
    ids=lambda changes: f"{changes}",
)
def test_parts_of_another_kind_are_explained(copy: Workspace, changes: dict[str, Any]) -> None:
    model = load_model(copy.models / "knn.skops")
    path = copy.models / "other.skops"
    skops_io.dump({"featpipe_model": 2, **vars(model), **changes}, path)
    seal_archive(path)
    with pytest.raises(ResultError):
        load_model(path)


def rearranged(path: Path, **changes: Any) -> Path:
    """Return a sealed copy of a linear model with other arrays, or facts in its description."""
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(arrays["about"].tobytes())
    about |= {name: value for name, value in changes.items() if name not in arrays}
    arrays |= {name: value for name, value in changes.items() if name in arrays}
    if "about" not in changes:
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    odd = path.with_name("odd.npz")
    np.savez(odd, **arrays)
    seal_archive(odd)
    return odd


@pytest.mark.parametrize(
    "changes",
    [
        {"about": np.frombuffer(b"[" * 200_000, np.uint8)},
        {"about": np.frombuffer(b"[]", np.uint8)},
        {"about": np.array([{}], dtype=object)},
        {"weight": np.zeros((8, 2))},
        {"weight": np.full((8, 3), np.nan)},
        {"weight": np.zeros(3)},
        {"weight": np.zeros((8, 3), np.float32)},
        {"bias": np.zeros((3, 1))},
        {"classes_": np.array([0, 1, 3])},
        {"classes_": np.array([0, 2, 1])},
        {"classes_": np.array([-1, 0, 1])},
        {"featpipe_model": 3},
        {"classes": 5},
        {"classes": [1, 2, 3]},
        {"layer": None},
        {"temperature": "hot"},
        {"backbone": "resnet50"},
    ],
    ids=lambda changes: f"{changes}"[:40],
)
def test_an_odd_linear_model_is_explained(copy: Workspace, changes: dict[str, Any]) -> None:
    odd = rearranged(copy.models / "centroid.npz", **changes)
    with pytest.raises(ResultError) as caught:
        load_model(odd)
    assert caught.value.details["where"] == str(odd)


def test_a_linear_model_of_a_forged_size_takes_no_memory(copy: Workspace) -> None:
    huge = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3)}
    np.lib.format.write_array_header_1_0(huge, shape)
    path = rearranged(copy.models / "centroid.npz")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (parts | {"weight.npy": huge.getvalue()}).items():
            archive.writestr(name, content)
    seal_archive(path)
    with pytest.raises(ResultError, match="cannot be read"):
        load_model(path)


def test_a_model_that_does_not_describe_its_backbone_is_explained(copy: Workspace) -> None:
    with pytest.raises(FeatpipeError, match="lacks a description of its backbone"):
        open_predictor(copy, "centroid")  # the toy stores have no preprocessing


def test_the_digests_are_those_of_the_files(original: Any) -> None:
    result, data = original.results[0], original.folder / "data"
    assert result.digests == {
        "predictions": of_file(data / "results" / result.files["predictions"]),
        "model": of_file(data / "models" / result.files["model"]),
    }
