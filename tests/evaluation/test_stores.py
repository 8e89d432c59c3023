"""Which stores a command uses, and the message if that is not clear."""

from __future__ import annotations

import dataclasses

import pytest

from featpipe.errors import StoreError, UsageError
from featpipe.evaluation.stores import select_stores, train_and_test
from featpipe.probes.svm import Svm
from featpipe.steps import STEPS, Context
from featpipe.store import StoreWriter
from featpipe.store.layout import partial_path
from featpipe.workspace import Workspace
from tests.stores import content, sealed


class Notes:
    """Progress that stores its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def put(tmp_path):
    """Write a store into the workspace; ``backbone`` and ``images`` make it another one."""

    def write(
        split="train",
        dataset="toy",
        *,
        model="toynet",
        weights="none",
        images=12,
        n_logits=0,
        layers=("avgpool",),
    ):
        what = content(images, split=split, dataset=dataset, n_logits=n_logits)
        backbone = {"model": model, "weights": {"name": weights}}
        manifest = {**what.manifest, "backbone": backbone, "layers": list(layers)}
        shapes = dict.fromkeys(layers, (8,)) | ({"logits": (n_logits,)} if n_logits else {})
        what = dataclasses.replace(what, manifest=manifest, shapes=shapes)
        name = f"{split}-{what.fingerprint[:8]}.h5"
        return sealed(Workspace(tmp_path).features / dataset / model / name, what)

    return write


def select(tmp_path, **options):
    found = select_stores(Svm(**options), Context(Workspace(tmp_path), Notes()))
    return [store and store.path for store in found]


def test_the_only_stores_need_no_naming(put, tmp_path):
    train, test = put("train"), put("test")
    assert select(tmp_path) == [train.path, test.path]


def test_a_training_split_alone_has_no_test_store(put, tmp_path):
    train = put("train")
    assert select(tmp_path) == [train.path, None]


def test_a_split_of_another_name_is_not_tested_and_a_note_says_so(put, tmp_path):
    train, other, _ = put("train"), put("evaluation"), put("unlabeled")
    progress = Notes()
    chosen = select_stores(Svm(), Context(Workspace(tmp_path), progress))
    assert [store and store.path for store in chosen] == [train.path, None]
    (note,) = progress.notes
    assert "so the split evaluation is not used" in note
    assert f"--test {str(other.path)!r}" in note
    progress.notes.clear()
    select_stores(Svm(protocol="kfold:2"), Context(Workspace(tmp_path), progress))
    assert not progress.notes


def test_a_validation_split_is_tested_and_an_unlabelled_one_is_not_looked_at(put, tmp_path):
    train, val, _ = put("train"), put("val"), put("unlabeled")
    assert select(tmp_path) == [train.path, val.path]


def test_a_test_split_alone_is_all_there_is(put, tmp_path):
    test = put("test")
    assert select(tmp_path) == [test.path, None]


def test_dataset_and_model_tell_stores_apart(put, tmp_path):
    one, other, third = put(), put(dataset="zoo"), put(model="bignet")
    assert select(tmp_path, dataset="zoo") == [other.path, None]
    assert select(tmp_path, model="bignet") == [third.path, None]
    assert select(tmp_path, dataset="toy", model="toynet") == [one.path, None]


@pytest.mark.parametrize("other", [{"dataset": "zoo"}, {"weights": "v2"}, {"images": 9}])
def test_of_several_the_message_lists_all(put, tmp_path, other):
    stores = [put(), put(**other)]
    with pytest.raises(UsageError, match="Several feature stores fit") as caught:
        select(tmp_path)
    for store in stores:
        assert str(store.path) in caught.value.details["got"]
    assert "--train FILE --test FILE" in caught.value.details["next"]


@pytest.mark.parametrize(
    ("others", "asked", "advice"),
    [
        ([{"dataset": "zoo"}], {}, "add --dataset (toy or zoo); or name"),
        ([{"dataset": "zoo"}, {"model": "bignet"}], {},
         "add --dataset (toy or zoo), --model (bignet or toynet); or name"),
        ([{"layers": ("layer3",)}], {}, "add --layer (avgpool or layer3); or name"),
        ([{"layers": ("avgpool", "layer3")}], {}, "add --layer (layer3); or name"),
        ([{"layers": ("avgpool", "layer3")}], {"layer": "avgpool"}, "name"),
        ([{"layers": ("layer3",)}], {"layer": "logits"}, "name"),  # which both of them hold
        ([{"weights": "v2"}], {}, "name"),
    ],
)  # fmt: skip
def test_only_options_that_tell_the_stores_apart_are_advised(put, tmp_path, others, asked, advice):
    for store in ({}, *others):
        put(**store, n_logits=5)
    with pytest.raises(UsageError, match="Several feature stores fit") as caught:
        select(tmp_path, **asked)
    assert caught.value.details["next"] == f"{advice} the files: --train FILE --test FILE"


def test_two_splits_of_which_none_is_called_train_are_not_chosen_from(put, tmp_path):
    stores = [put("first"), put("second")]
    with pytest.raises(UsageError) as caught:
        select(tmp_path)
    assert all(str(store.path) in caught.value.details["got"] for store in stores)


def test_where_none_fits_the_message_is_the_command_that_makes_one(put, tmp_path):
    put()
    with pytest.raises(StoreError, match="No feature store fits") as caught:
        select(tmp_path, dataset="stl10", model="resnet50", layer="layer3")
    command = "featpipe extract --model resnet50 --dataset stl10 --layer layer3"
    assert caught.value.details["next"] == command
    assert "toy train (12 images) × toynet avgpool" in caught.value.details["got"]


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ({"model": "toynett"}, "did you mean 'toynet'?"),  # of a store
        ({"model": "glyphne"}, "did you mean 'glyphnet'?"),  # known, although not yet extracted
        ({"model": "resnet_110"}, "did you mean 'resnet110'?"),  # another name of cifar_resnet110
        ({"dataset": "toi"}, "did you mean 'toy'?"),
        ({"dataset": "stl1O"}, "did you mean 'stl10'?"),
        ({"dataset": "stl1O", "model": "toynet"}, "did you mean 'stl10'?"),
        ({"layer": "avgpol"}, "did you mean 'avgpool'? or extract it: featpipe extract --model "
         "MODEL --dataset DATASET --layer avgpol"),
        ({"dataset": "stl10", "model": "toynet"},
         "featpipe extract --model toynet --dataset stl10"),
        ({"model": "timm:toynet"}, "featpipe extract --model timm:toynet --dataset DATASET"),
        ({"dataset": "folder:toys"}, "featpipe extract --model MODEL --dataset folder:toys"),
    ],
)  # fmt: skip
def test_a_misspelt_name_is_guessed(put, tmp_path, asked, advice):
    put()
    with pytest.raises(StoreError) as caught:
        select(tmp_path, **asked)
    assert caught.value.details["next"] == advice


def test_in_an_empty_workspace_too(tmp_path):
    with pytest.raises(StoreError) as caught:
        select(tmp_path)
    assert caught.value.details["got"] == "no stores"
    assert caught.value.details["next"] == "featpipe extract --model MODEL --dataset DATASET"


def test_a_damaged_store_is_reported_and_left_out(put, tmp_path):
    good = put()
    bad = good.path.with_name("bad.h5")
    bad.write_bytes(good.path.read_bytes()[:400])
    progress = Notes()
    found, _ = select_stores(Svm(), Context(Workspace(tmp_path), progress))
    assert found.path == good.path
    assert len(progress.notes) == 1
    assert str(bad) in progress.notes[0]


def left_unfinished(store):
    what = content(len(store), split=store.manifest["dataset"]["split"])
    what = dataclasses.replace(what, manifest=store.manifest)
    store.path.unlink()
    StoreWriter(store.path, what).close()
    return partial_path(store.path)


def appended(store):
    with store.path.open("ab") as file:
        file.write(b"x")
    return store.path


def emptied(store):
    store.path.write_bytes(b"")
    return store.path


def with_an_unreadable_beginning(store):
    path = left_unfinished(store)
    path.write_bytes(b"0" + path.read_bytes()[1:])
    return path


UNUSABLE = [appended, emptied, left_unfinished, with_an_unreadable_beginning]


@pytest.mark.parametrize("damage", UNUSABLE)
@pytest.mark.parametrize(
    "options",
    [{}, {"dataset": "toy"}, {"model": "toynet"}, {"layer": "avgpool"}, {"protocol": "split"}],
    ids=str,
)
def test_a_test_store_that_cannot_be_used_changes_no_protocol(put, tmp_path, damage, options):
    put("train")
    path = damage(put("test"))
    with pytest.raises(StoreError, match=f"store of the test rows, {path.name}, cannot") as caught:
        select(tmp_path, **options)
    assert caught.value.details["where"] == str(path)
    advice = caught.value.details["next"]
    assert "featpipe extract --model toynet --dataset toy" in advice
    assert "--protocol holdout:0.2" in advice
    assert ("rm " in advice) == (path.suffix == ".h5")  # an unfinished one is continued


@pytest.mark.parametrize("damage", UNUSABLE)
@pytest.mark.parametrize("protocol", ["auto", "holdout:0.2", "kfold:3"])
def test_test_rows_do_not_train_where_the_training_rows_are_damaged(
    put, tmp_path, damage, protocol
):
    put("test")
    path = damage(put("train"))
    with pytest.raises(StoreError, match="store of the train rows") as caught:
        select(tmp_path, protocol=protocol)
    assert caught.value.details["where"] == str(path)


@pytest.mark.parametrize("damage", UNUSABLE)
@pytest.mark.parametrize("protocol", ["holdout:0.2", "kfold:3"])
def test_a_protocol_without_test_rows_goes_on_and_notes_it(put, tmp_path, damage, protocol):
    train, path, progress = put("train"), damage(put("test")), Notes()
    context = Context(Workspace(tmp_path), progress)
    assert select_stores(Svm(protocol=protocol), context)[0].path == train.path
    assert [str(path) in note for note in progress.notes] == [True]


@pytest.mark.parametrize("damage", UNUSABLE)
def test_the_only_store_there_is_is_named(put, tmp_path, damage):
    path = damage(put("train"))
    with pytest.raises(StoreError) as caught:
        select(tmp_path)
    assert caught.value.details["where"] == str(path)


@pytest.mark.parametrize("damage", UNUSABLE)
@pytest.mark.parametrize(
    "other", [{"split": "unlabeled"}, {"split": "more"}, {"dataset": "zoo"}, {"model": "bignet"}]
)
def test_a_store_that_would_not_be_looked_at_is_no_obstacle(put, tmp_path, damage, other):
    train = put("train")
    damage(put(**{"split": "test", **other}))
    asked = {"dataset": "toy", "model": "toynet"}
    assert select(tmp_path, **asked) == [train.path, None]


def test_an_unfinished_store_of_other_options_is_no_obstacle(put, tmp_path):
    train = put("train")
    left_unfinished(put("test", weights="v2"))
    assert select(tmp_path) == [train.path, None]


def test_a_damaged_store_of_a_split_that_is_there_is_no_obstacle(put, tmp_path):
    train, test = put("train"), put("test")
    test.path.with_name("test-0123abcd.h5").write_bytes(b"damaged")
    assert select(tmp_path) == [train.path, test.path]


@pytest.mark.parametrize(
    ("name", "without"),
    [
        *((name, "--train FILE") for name in ("svm", "logistic", "knn", "centroid", "zeroshot")),
        ("audit", "featpipe audit FILE"),
    ],
)
def test_every_step_on_features_says_so_before_it_runs(put, tmp_path, name, without):
    put("train", n_logits=5)
    path = appended(put("test", n_logits=5))
    context = Context(Workspace(tmp_path))
    step = STEPS.get(name)()
    for look in (step.run, step.status):
        with pytest.raises(StoreError, match=f"{path.name}, cannot be used") as raised:
            look(context)
        assert without in raised.value.details["next"]


def test_logits_are_a_layer_of_the_stores_that_hold_them(put, tmp_path):
    put()
    with pytest.raises(StoreError, match="No feature store fits") as caught:
        select(tmp_path, layer="logits")
    assert "--layer" not in caught.value.details["next"]  # they cannot be asked for: weights decide
    train = put(model="bignet", n_logits=5)
    assert select(tmp_path, layer="logits") == [train.path, None]


# -- stores named by the user ----------------------------------------------------------------------


def test_named_stores_are_taken(put, tmp_path):
    train, test = put("train"), put("test", dataset="zoo")
    assert select(tmp_path, train=train.path) == [train.path, None]
    assert select(tmp_path, train=train.path, test=test.path) == [train.path, test.path]


def test_a_test_store_alone_is_half_a_request(put):
    with pytest.raises(UsageError, match="--test needs --train"):
        Svm(test=put("test").path)


@pytest.mark.parametrize("asked", [{"model": "bignet"}, {"dataset": "zoo"}])
def test_named_stores_must_be_of_the_dataset_and_model_asked_for(put, tmp_path, asked):
    with pytest.raises(UsageError, match="not one of the dataset and model") as caught:
        select(tmp_path, train=put().path, **asked)
    assert caught.value.details["expected"] in ("bignet", "zoo")


@pytest.mark.parametrize("other", [{"model": "bignet"}, {"weights": "v2"}])
def test_features_of_two_backbones_are_never_mixed(put, tmp_path, other):
    train, test = put("train"), put("test", **other)
    with pytest.raises(UsageError, match="not of one backbone") as caught:
        select(tmp_path, train=train.path, test=test.path)
    assert str(test.path) in caught.value.details["got"]


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match="no such feature store"):
        select(tmp_path, train=tmp_path / "none.h5")


def test_a_model_may_be_asked_for_by_its_other_name(put, tmp_path):
    train = put(model="cifar_resnet20")
    found, _ = select_stores(Svm(model="resnet20"), Context(Workspace(tmp_path)))
    assert found.path == train.path


def test_unlabelled_rows_alone_are_refused():
    with pytest.raises(StoreError, match="only unlabelled rows"):
        train_and_test([])
