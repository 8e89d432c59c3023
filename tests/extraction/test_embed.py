"""A folder of images becomes a file of vectors in one command, with labels or without."""

from __future__ import annotations

import json
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featpipe.cli import main
from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.errors import FitError, StoreError, UsageError
from featpipe.extraction import Extract
from featpipe.extraction.step import Embed
from featpipe.probes.svm import Svm
from featpipe.steps import Context
from featpipe.store import FeatureStore
from featpipe.workspace import Workspace
from tests.images import pictures


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return Context(Workspace(tmp_path_factory.mktemp("work")))


def embedded(photos, context, out, **more):
    values = {"dataset": str(photos), "model": "glyphnet", "device": "cpu", "runtime": "torch"}
    return Embed(**{**values, "out": out, **more}).run(context)


@pytest.mark.parametrize("ending", ["csv", "parquet", "npz", "h5"])
def test_a_flat_folder_without_labels(photos, context, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"vectors.{ending}"
    assert embedded(photos, context, out).paths == (out,)
    ids = [f"{number}.png" for number in range(4)]
    if ending in ("npz", "h5"):
        with np.load(out) if ending == "npz" else h5py.File(out) as file:
            assert not {"labels", "classes"} & set(file)
            found, X = np.asarray(file["ids"]).astype(str).tolist(), np.asarray(file["features"])
    else:
        table = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
        assert list(table.columns) == ["id", *(f"f{n}" for n in range(128))]
        found, X = table["id"].tolist(), table.iloc[:, 1:].to_numpy(np.float32)
    assert found == ids
    (path,) = (context.workspace.features).rglob("*.h5")
    assert np.allclose(X, FeatureStore(path).features())
    embedded(photos, context, out)  # what it wrote itself may be replaced
    out.write_text("mine")
    with pytest.raises(UsageError, match="did not write"):
        embedded(photos, context, out)
    assert "up to date" in embedded(photos, context, out, force=True).message


def test_a_second_call_embeds_nothing_and_needs_no_torch(photos, context, tmp_path, capsys):
    line = f"embed {photos} -o {tmp_path / 'v.npz'} --model glyphnet --device cpu --runtime torch"
    line += f" --workspace {context.workspace.root} --json"
    ended = []
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            main(line.split())
        assert caught.value.code == 0
        ended.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert "up to date" in ended[1]["message"]
    values = {"dataset": f"folder:{photos}", "model": "glyphnet", "device": "cpu"}
    assert Extract(**values, runtime="torch").status(context).done


def test_several_splits_make_several_files(context, tmp_path):
    made = embedded("digits", context, tmp_path / "v.npz", limit=5)
    assert [path.name for path in made.paths] == ["v-train.npz", "v-test.npz"]
    with np.load(made.paths[0]) as arrays:
        assert len(arrays["labels"]) == len(arrays["features"]) == 5


def test_a_slash_in_the_name_of_a_split_is_not_part_of_the_path(context, tmp_path):
    split = np.array(["train", "ext/ra"] * 3)
    np.savez(tmp_path / "toy.npz", images=pictures(6), labels=[0, 0, 1, 1, 0, 1], split=split)
    made = embedded(f"npz:{tmp_path / 'toy.npz'}", context, tmp_path / "v.npz")
    assert sorted(path.name for path in made.paths) == ["v-ext-ra.npz", "v-train.npz"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"out": "v.xlsx"}, "Cannot export"), ({"out": "v.npz", "layer": "a,b"}, "one layer")],
)
def test_what_cannot_be_written_is_refused_before_anything_is_embedded(options, message):
    with pytest.raises(UsageError, match=message):
        Embed(dataset="photos", **options)


def test_a_table_needs_only_paths(photos):
    table = photos / "list.csv"
    table.write_text("path\n1.png\n3.png\n")
    source = open_source(f"csv:{table}", "all", DatasetOptions())
    assert (source.ids, source.classes, source.labels.tolist()) == (
        ["1.png", "3.png"],
        (),
        [-1, -1],
    )


@pytest.mark.parametrize("protocol", ["auto", "kfold:3"])
def test_where_labels_are_needed_the_error_says_so(photos, context, protocol):
    for path in context.workspace.features.rglob("*.h5"):
        if FeatureStore(path).classes == ():
            with pytest.raises(FitError, match="no labelled row") as caught:
                Svm(train=path, protocol=protocol).run(context)
            assert "column label" in caught.value.details["next"]
            break
    else:
        pytest.fail(f"no unlabelled store, python {sys.version}")


def test_images_without_labels_do_not_get_in_the_way_of_others(photos, tmp_path):
    context = Context(Workspace(tmp_path))
    values = {"model": "glyphnet", "device": "cpu", "runtime": "torch"}
    Extract(dataset=f"folder:{photos}", **values).run(context)
    with pytest.raises(StoreError, match="No feature store fits"):
        Svm().run(context)
    Extract(dataset="digits", limit=60, **values).run(context)
    assert Svm(c=(0.01,)).run(context).status == "done"
    with pytest.raises(FitError, match="no labelled row"):
        Svm(dataset=f"folder:{photos}").run(context)
