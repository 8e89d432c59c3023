"""The step ``extract`` before it runs: what names its stores, what is done, what is to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featpipe
from featpipe.backbones import GLYPHNET
from featpipe.datasets.dataset import SourceRequest
from featpipe.datasets.images import EncodedSource
from featpipe.errors import StoreError, UnknownNameError, UsageError
from featpipe.extraction import Extract
from featpipe.fingerprint import FileHashes, of_mapping
from featpipe.steps import STEPS, Context
from featpipe.steps.plan import Plan
from featpipe.steps.recipe import parse_recipe
from featpipe.store import FeatureStore
from featpipe.workspace import Workspace
from tests import images

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def archive(tmp_path: Path) -> str:
    split = np.array(["train"] * 8 + ["test"] * 4)
    path = tmp_path / "toy.npz"
    np.savez(path, images=images.pictures(12), labels=np.arange(12) % 3, split=split)
    return f"npz:{path}"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Workspace(tmp_path / "work"))


def asked(dataset: str, **options: Any) -> Extract:
    return Extract(**{"model": "glyphnet", "dataset": dataset, "device": "cpu", **options})


def test_it_is_a_step_that_makes_features_without_needing_any() -> None:
    assert STEPS.get("extract") is Extract
    assert Extract.makes == ("features",)
    assert asked("digits").has_inputs()


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 3}, {"workers": 2}, {"on_error": "skip"}, {"download": False}, {"split": "x"}],
    ids=str,
)
def test_the_request_leaves_out_what_changes_no_number(options: dict[str, Any]) -> None:
    hashes = FileHashes()
    assert asked("digits", **options).request(hashes) == asked("digits").request(hashes)


@pytest.mark.parametrize(
    ("left_out", "spelled_out"),
    [
        ({}, {"image_size": 32}),
        ({"image_size": "auto"}, {"image_size": 32}),
        ({}, {"layer": "avgpool"}),
        ({}, {"weights": "glyphs_v1"}),
        ({}, {"weights": "default"}),
        ({}, {"weights": str(GLYPHNET)}),
        ({}, {"fit": "crop"}),  # of an image that fills the input nothing is cut
        ({"device": "auto"}, {"device": "cpu"}),
        ({}, {"dtype": "float32"}),
        ({}, {"runtime": "torch"}),
        ({"batch_size": "auto"}, {"batch_size": 32}),
        ({}, {"split": "train,test"}),
        ({}, {"classes": "first:3"}),
        ({}, {"limit": 8}),
    ],
    ids=str,
)
def test_auto_and_what_it_resolves_to_share_one_key(
    archive: str, context: Context, left_out: dict[str, Any], spelled_out: dict[str, Any]
) -> None:
    short, long = asked(archive, **left_out), asked(archive, **spelled_out)
    assert long.request(FileHashes()) == short.request(FileHashes())
    assert long.status(context).key == short.status(context).key
    made = short.run(context)
    assert long.status(context).done
    again = long.run(context)
    assert (again.status, again.paths) == ("up to date", made.paths)


@pytest.mark.parametrize(
    ("model", "spelled_out"),
    [
        ("resnet18", {"weights": "IMAGENET1K_V1", "image_size": 224, "layer": "avgpool"}),
        ("resnet50", {"weights": "IMAGENET1K_V2", "image_size": 224, "layer": "avgpool"}),
        ("resnet20", {"weights": "cifar10_v1", "image_size": 32, "fit": "crop"}),
    ],
)
def test_what_default_weights_are_called_makes_no_difference(
    model: str, spelled_out: dict[str, Any]
) -> None:
    requests = [
        Extract(model=model, dataset="digits", **options).request(FileHashes())
        for options in ({}, spelled_out)
    ]
    assert requests[0] == requests[1]


def request(dataset: str, fit: str, **options: Any) -> dict[str, Any]:
    step = Extract(model="resnet18", dataset=dataset, fit=fit, device="cpu", **options)
    sources = SourceRequest.of(step).open_all(None, Context(), download=False)
    return step.request(FileHashes(), sources)


def test_auto_cuts_no_margin_where_all_images_have_one_small_size(archive: str) -> None:
    assert "fit" not in request("digits", "auto")["options"]
    assert "fit" not in request(archive, "auto")["options"]
    assert request("digits", "crop")["options"]["fit"] == "crop"
    assert request(archive, "auto", image_size=32)["options"]["fit"] == "crop"  # of 40 pixels


def test_auto_is_the_weights_own_crop_where_sizes_differ(tmp_path: Path) -> None:
    folder = images.photo_folder(tmp_path / "photos")
    assert "fit" not in request(f"folder:{folder}", "auto")["options"]
    Image.fromarray(images.pictures(1, 44)[0]).save(folder / "ant" / "0.png")
    assert request(f"folder:{folder}", "auto") == request(f"folder:{folder}", "crop")
    # The whole dataset decides, not the rows that are chosen from it.
    few = {"limit": 3, "split_seed": 1}
    assert request(f"folder:{folder}", "auto", **few)["options"]["fit"] == "crop"


def test_sizes_are_looked_at_only_where_they_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For images in a bucket each of them is fetched for it."""
    folder = images.photo_folder(tmp_path / "photos")
    looked: list[str] = []
    size = property(lambda source: looked.append(source.split) or (9, 9))
    monkeypatch.setattr(EncodedSource, "size", size)
    featpipe.extract(f"folder:{folder}", "glyphnet", fit="crop", workspace=tmp_path)
    assert not looked
    featpipe.extract(f"folder:{folder}", "glyphnet", fit="auto", workspace=tmp_path)
    assert set(looked) == {"all"}


@pytest.mark.parametrize("runtime", ["auto", "torch", "openvino"])
def test_runtimes_that_give_the_same_numbers_share_the_request(runtime: str) -> None:
    asked_for = asked("digits", runtime=runtime).request(FileHashes())
    assert asked_for == asked("digits").request(FileHashes())


def test_a_lower_precision_is_a_request_of_its_own() -> None:
    pytest.importorskip("openvino")
    known = [
        asked("digits", precision=precision, runtime=runtime).request(FileHashes())["options"]
        for precision, runtime in [("bfloat16", "torch"), ("bfloat16", "openvino")]
    ]
    assert known[0] != known[1]
    assert known[1] == {**known[0], "runtime": "openvino"}


def test_the_request_of_today_keeps_its_key() -> None:
    # An option that is added must not make every store stale; see Step.identity.
    plain = asked("digits").request(FileHashes())
    every = asked("digits", layer="layer2", dtype="float16", fit="whole", image_size=48)
    assert [of_mapping(plain)[:12], of_mapping(every.request(FileHashes()))[:12]] == [
        "7350e4658916",
        "7185bde21a18",
    ]


def test_a_real_store_of_today_keeps_its_fingerprint(context: Context) -> None:
    outcome = asked("digits", split="test", limit=20).run(context)
    store = FeatureStore(outcome.paths[0])
    assert store.run["request"]["options"] == {"image_size": 32, "layer": ["avgpool"]}
    assert store.manifest["layers"] == ["avgpool"]
    assert store.manifest["backbone"]["weights"]["name"] == "GLYPHS_V1"
    assert store.fingerprint[:12] == outcome.paths[0].stem.rpartition("-")[2] == "d7ca1a89014d"


def test_nothing_is_done_before_and_all_is_done_after(archive: str, context: Context) -> None:
    step = asked(archive)
    before = step.status(context)
    assert (before.done, before.why) == (False, "8 of train, 4 of test to embed")
    assert before.seconds is None
    outcome = step.run(context)
    after = step.status(context)
    assert (after.done, after.key) == (True, before.key)
    assert after.paths == outcome.paths
    assert outcome.facts["stores"][0]["layers"] == {"avgpool": [128]}


def test_time_and_space_are_estimated_from_the_last_one_alike(
    archive: str, context: Context, tmp_path: Path
) -> None:
    train = FeatureStore(asked(archive, split="train").run(context).paths[0])
    other = images.photo_archive(tmp_path / "more.npz", 80)
    status = asked(f"npz:{other}").status(context)
    assert status.seconds == 80 / train.run["images_per_s"]
    assert status.n_bytes == 80 * train.n_bytes / len(train)
    assert "images/s, as before" in status.basis
    assert asked(f"npz:{other}", dtype="float16").status(context).seconds is None


def test_only_missing_splits_are_to_do(archive: str, context: Context) -> None:
    asked(archive, split="test").run(context)
    assert asked(archive).status(context).why == "8 of train to embed"


def test_an_unfinished_store_is_seen(archive: str, context: Context) -> None:
    (path, _) = asked(archive).run(context).paths
    path.rename(path.with_name(path.name + ".partial"))
    assert "continues an unfinished store" in asked(archive).status(context).why


def test_an_unfinished_store_of_featpipe_0_1_cannot_be_continued(
    archive: str, context: Context
) -> None:
    folder = context.workspace.features / "npz-toy" / "glyphnet"
    folder.mkdir(parents=True)
    for ending in ("partial", "journal"):
        (folder / f"train-0123456789ab.h5.{ending}").write_bytes(b"")
    assert "continues" not in asked(archive).status(context).why
    assert asked(archive).run(context).status == "done"
    assert asked(archive).status(context).done


def test_a_damaged_store_is_named_in_a_dry_run_and_by_the_run(
    archive: str, context: Context
) -> None:
    """Not taken for one that is not there, after which a probe would cut rows to test on."""
    recipe = parse_recipe(
        f"steps: [{{step: extract, model: glyphnet, dataset: '{archive}', device: cpu}},"
        " {step: centroid}]"
    )
    test = asked(archive).run(context).paths[1]
    test.write_bytes(test.read_bytes() + b"x")
    (first, second) = Plan.of(recipe, context).outcome().table
    assert test.name in first["why"]
    assert "damaged" in first["why"]
    assert (first["state"], second["state"]) == ("to do", "to do")
    with pytest.raises(StoreError, match="damaged") as caught:
        asked(archive).run(context)
    assert caught.value.details["where"] == str(test)
    assert f"rm {str(test)!r}" in caught.value.details["next"]


@pytest.mark.parametrize("ending", ["partial", "sealing"])
def test_what_a_killed_writer_left_beside_its_store_is_removed(
    archive: str, context: Context, ending: str
) -> None:
    (path, _) = asked(archive).run(context).paths
    path.with_name(f"{path.name}.{ending}").write_bytes(b"")
    assert asked(archive).run(context).status == "up to date"
    assert len(list(path.parent.iterdir())) == 2


def test_what_is_missing_is_not_downloaded_for_a_look(context: Context) -> None:
    with pytest.raises(Exception, match=r"CIFAR-10|cifar10"):
        asked("cifar10").status(context)


def test_up_to_date_is_said_without_torch(archive: str, context: Context) -> None:
    asked(archive).run(context)
    code = (
        "import sys; from featpipe.extraction import Extract; from featpipe.steps import Context;"
        "from featpipe.workspace import Workspace; from pathlib import Path;"
        f"step = Extract(model='glyphnet', dataset={archive!r});"
        f"context = Context(Workspace(Path({str(context.workspace.root)!r})));"
        "assert step.status(context).done; assert step.run(context).status == 'up to date';"
        "sys.exit(' '.join({'torch', 'torchvision', 'sklearn', 'pandas'} & set(sys.modules)) or 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"model": "resnet51"}, UnknownNameError, "'resnet5"),
        ({"model": "timm"}, UsageError, "timm:vit_base_patch16_224"),
        ({"model": "resnet18:5"}, UnknownNameError, "resnet18:5"),
        ({"runtime": "torsh"}, UnknownNameError, "'torch'"),
    ],
)
def test_wrong_names_are_refused_at_once(options: Any, kind: type, says: str) -> None:
    with pytest.raises(kind) as caught:
        Extract(**{"model": "glyphnet", "dataset": "digits", **options})
    assert says in str(caught.value)
