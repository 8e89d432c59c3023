"""The mapped classifier on stores: maps that fit, maps that do not, and what is told of "other"."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy.special import softmax

from featpipe.errors import FeatpipeError, LabelMapError, StoreError
from featpipe.labelmap import SourceClasses
from featpipe.probes.zeroshot import Zeroshot
from featpipe.store import StoreContent
from featpipe.workspace import Workspace
from tests.evaluation.methods import context, evaluate, evaluated, written
from tests.stores import content

CLASSES = ("ant", "bee", "cat")
MAP = [("s0", "ant"), ("s1", "other"), ("s2", "bee"), ("s3", "ant"), ("s4", "other")]  # no cat


def write_map(path, rows=MAP, targets=CLASSES):
    with path.open("w", newline="") as stream:
        stream.write(f"# targets: {', '.join(targets)}\n")
        writer = csv.writer(stream)
        writer.writerow(["source_id", "source_name", "target", "why"])
        writer.writerows((name, f"source {name[1:]}", target, "") for name, target in rows)
    return path


def store_of(path, best: list[int], labels: list[int], **more):
    """Return a store whose rows have their highest logit where ``best`` says."""
    logits = np.full((len(best), 5), -2.0, dtype=np.float32)
    logits[np.arange(len(best)), best] = 3.0
    what = content(len(best), CLASSES, labels=np.array(labels), n_logits=5, **more)
    return written(path, what, logits=logits)


@pytest.fixture
def store(tmp_path):
    # ant: right, right (two source classes), other; bee: right, ant; cat: other, ant
    return store_of(tmp_path / "test.h5", [0, 3, 1, 2, 0, 4, 0], [0, 0, 0, 1, 1, 2, 2])


def zeroshot(store, tmp_path, policy="argmax", protocol="all", **options):
    step = Zeroshot(policy=policy, map=str(write_map(tmp_path / "map.csv")), protocol=protocol)
    return evaluated(step, tmp_path, store, **options)


def test_the_share_sent_to_other_and_accuracy_with_and_without_classes_without_source(
    store, tmp_path
):
    result = zeroshot(store, tmp_path)
    metrics = result.summary["metrics"]
    assert result.dataset["other"]
    assert result.summary["accuracy"]["value"] == pytest.approx(3 / 7)
    assert metrics["coverage"] == pytest.approx(5 / 7)
    assert metrics["accuracy_covered"] == pytest.approx(3 / 5)
    assert metrics["accuracy_with_source"] == pytest.approx(3 / 5)
    assert metrics["classes_without_source"] == ["cat"]
    assert metrics["confusion"] == [[2, 0, 0, 1], [1, 1, 0, 0], [1, 0, 0, 1]]
    assert result.extra["label_map"]["without_source"] == ["cat"]
    assert any("No source class maps to: cat" in note for note in result.notes)
    assert result.predictions().predicted.tolist() == [0, 0, 3, 1, 0, 3, 0]


def test_recall_and_precision_have_their_right_names(store, tmp_path):
    ant, bee, cat = zeroshot(store, tmp_path).summary["metrics"]["per_class"]
    assert (ant["recall"], ant["precision"]) == (pytest.approx(2 / 3), pytest.approx(2 / 4))
    assert (bee["recall"], bee["precision"]) == (pytest.approx(1 / 2), pytest.approx(1.0))
    assert (cat["recall"], cat["precision"]) == (0.0, None)


def test_restricted_answers_no_other(store, tmp_path):
    result = zeroshot(store, tmp_path, "restricted")
    assert not result.dataset["other"]
    assert set(result.predictions().predicted) <= {0, 1}
    assert result.predictions().scores.shape == (7, 3)


def test_nothing_is_trained_and_no_training_row_is_missed(store, tmp_path):
    result = zeroshot(store, tmp_path)
    assert result.cost["parameters_trained"] == 0
    assert not any("training row" in note for note in result.notes)
    assert "model" not in result.files


def test_batches_do_not_show(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 5000)
    logits = rng.normal(size=(5000, 5)).astype(np.float32)
    what = content(5000, CLASSES, 2, labels=labels, n_logits=5)
    store = written(tmp_path / "big.h5", what, logits=logits)
    predicted = zeroshot(store, tmp_path).predictions().predicted
    assert (predicted == np.array([0, 3, 1, 0, 3])[logits.argmax(axis=1)]).all()


def test_official_folds_all_see_the_same_test_rows(tmp_path):
    train = store_of(
        tmp_path / "train.h5", [0] * 9, [0, 1, 2] * 3, folds=(np.arange(3), np.arange(6))
    )
    test = store_of(tmp_path / "test.h5", [0, 2], [0, 1], split="test")
    step = Zeroshot(map=str(write_map(tmp_path / "map.csv")), protocol="folds")
    result = evaluated(step, tmp_path, train, test)
    assert result.protocol["splits"] == 2
    assert result.summary["accuracy"]["value"] == 1.0


def test_a_store_without_logits_names_the_command_that_makes_one(tmp_path):
    store = written(tmp_path / "plain.h5", content(6))
    with pytest.raises(StoreError, match="no logits") as caught:
        evaluate(Zeroshot(protocol="all"), store)
    assert "featpipe extract --dataset toy --model resnet50" in caught.value.details["next"]


def test_no_built_in_map_for_these_classes(store):
    with pytest.raises(LabelMapError, match="no built-in label map") as caught:
        evaluate(Zeroshot(protocol="all"), store)
    assert "--map" in caught.value.details["next"]


@pytest.mark.parametrize(
    ("rows", "line", "said"),
    [
        ([*MAP[:2], ("s9", "bee"), *MAP[3:]], "5", "s9"),
        ([*MAP[:4], ("s3", "bee")], "7", "s3"),
        ([*MAP[:4], ("s4", "dog")], "7", "dog"),
        (MAP[:4], "", "s4"),
    ],
    ids=["unknown id", "id twice", "unknown target", "id missing"],
)
def test_a_map_that_does_not_fit_is_refused_with_its_line(store, tmp_path, rows, line, said):
    path = write_map(tmp_path / "bad.csv", rows)
    with pytest.raises(LabelMapError) as caught:
        evaluate(Zeroshot(protocol="all", map=str(path)), store)
    text = str(caught.value)
    assert str(path) in text
    assert said in text
    assert line in text.replace(str(path), "")


def test_more_classes_than_the_map_knows_is_refused(tmp_path):
    what = content(4, (*CLASSES, "deer"), n_logits=5)
    store = written(tmp_path / "more.h5", what)
    with pytest.raises(LabelMapError, match="deer"):
        evaluate(Zeroshot(protocol="all", map=str(write_map(tmp_path / "map.csv"))), store)


def test_a_class_named_other_is_refused_or_kept_apart(tmp_path):
    what = content(4, ("ant", "other"), n_logits=5)
    store = written(tmp_path / "other.h5", what)
    path = write_map(tmp_path / "map.csv", targets=("ant", "other"))
    with pytest.raises(FeatpipeError):
        evaluate(Zeroshot(protocol="all", map=str(path)), store)


def test_the_map_belongs_to_the_key(store, tmp_path):
    mine = write_map(tmp_path / "map.csv")
    other = write_map(tmp_path / "other.csv", [*MAP[:4], ("s4", "cat")])
    keys = [
        evaluate(Zeroshot(protocol="all", map=str(path)), store).key for path in (mine, other, mine)
    ]
    assert keys[0] == keys[2] != keys[1]


def test_the_order_of_the_columns_does_not_matter(tmp_path):
    """Classes are known by their ids: a classifier with its columns turned round answers alike."""
    rng = np.random.default_rng(0)
    glyphs = SourceClasses.load("glyphs")
    logits = rng.normal(size=(8, len(glyphs.ids))).astype(np.float32)
    what = content(8, tuple("0123456789"), labels=np.arange(8), n_logits=len(glyphs.ids))

    def answers(ids, names, values, name):
        named = StoreContent(**{**vars(what), "source_classes": (list(ids), list(names))})
        store = written(tmp_path / name, named, logits=values)
        step = Zeroshot(protocol="all", map="glyphs_to_digits")
        return evaluated(step, tmp_path / name[:-3], store).predictions().predicted.tolist()

    plain = answers(glyphs.ids, glyphs.names, logits, "plain.h5")
    turned = answers(glyphs.ids[::-1], glyphs.names[::-1], logits[:, ::-1], "turned.h5")
    assert plain == turned


def test_the_step_says_the_line_of_a_bad_map(tmp_path, store):
    folder = Workspace(tmp_path).features / "toy" / "toynet"
    folder.mkdir(parents=True)
    store.path.rename(folder / "test-1.h5")
    path = write_map(tmp_path / "bad.csv", [*MAP[:2], ("s9", "bee"), *MAP[3:]])
    with pytest.raises(LabelMapError, match="s9") as caught:
        Zeroshot(map=str(path)).run(context(tmp_path))
    assert caught.value.details["where"].endswith("line 5")


# -- rows of a map that could as well be mapped otherwise ------------------------------------------


DISPUTED = """\
# targets: ant, bee, cat
# note: Chosen after a look at these labels.
source_id,target,disputed
s0,ant,
s1,other,moths: ant
s2,bee,
s3,ant,wasps: bee
s4,other,moths: cat
"""


def test_the_result_says_what_disputed_rows_matter(store, tmp_path):
    path = tmp_path / "map.csv"
    path.write_text(DISPUTED)
    result = evaluated(Zeroshot(protocol="all", map=str(path)), tmp_path, store)
    moths, wasps = result.extra["label_map"]["disputed"]
    # Both images answered "other" (an ant and a cat) are then answered right; one ant, s3, wrong.
    assert moths == {
        "group": "moths",
        "source_classes": ["s1", "s4"],  # the map gives no names
        "target": "other",
        "otherwise": "ant, cat",
        "changed": 2,
        "accuracy": pytest.approx(5 / 7),
        "difference": pytest.approx(2 / 7),
    }
    assert (wasps["target"], wasps["otherwise"], wasps["changed"]) == ("ant", "bee", 1)
    assert wasps["accuracy"] == pytest.approx(2 / 7)
    assert wasps["difference"] == pytest.approx(-1 / 7)
    assert "Chosen after a look at these labels." in result.notes


@pytest.mark.parametrize("policy", ["argmax", "group", "restricted"])
@pytest.mark.parametrize("protocol", ["all", "kfold:3"])
def test_mapped_otherwise_is_what_a_map_with_these_targets_gives(tmp_path, policy, protocol):
    rng = np.random.default_rng(3)
    labels = np.arange(60) % 3
    what = content(60, CLASSES, labels=labels, n_logits=5)
    store = written(tmp_path / "s.h5", what, logits=rng.normal(size=(60, 5)).astype(np.float32))
    path, moved = tmp_path / "map.csv", tmp_path / "moved.csv"
    path.write_text(DISPUTED)
    moved.write_text(DISPUTED.replace("s1,other", "s1,ant").replace("s4,other", "s4,cat"))
    step = Zeroshot(policy=policy, protocol=protocol, map=str(path))
    now, then = (evaluate(step.replace(map=str(p)), store) for p in (path, moved))
    moths = now.extra["label_map"]["disputed"][0]
    accuracy = [result.summary["accuracy"]["value"] for result in (now, then)]
    assert moths["accuracy"] == pytest.approx(accuracy[1])
    assert moths["difference"] == pytest.approx(accuracy[1] - accuracy[0])


def test_a_map_without_disputed_rows_has_no_such_table(store, tmp_path):
    assert zeroshot(store, tmp_path).extra["label_map"]["disputed"] == []


# -- classes of the dataset that are classes of the backbone ---------------------------------------


def named(path, classes, ids=None, n=24, split="test"):
    """Return a store whose backbone's classes are s0 … s4, named as given; its logits are noise."""
    names = ["ant", "bee", "crane", "crane", "dog"]
    what = content(n, classes, labels=np.arange(n) % len(classes), n_logits=5, split=split)
    source = (ids or [f"s{i}" for i in range(5)], names)
    logits = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    return written(path, StoreContent(**{**vars(what), "source_classes": source}), logits=logits)


@pytest.mark.parametrize(
    ("classes", "columns"),
    [(("dog", "ant"), [4, 0]), (("s3", "s0", "s1"), [3, 0, 1]), (("s2", "bee"), [2, 1])],
    ids=["names", "ids", "both"],
)
def test_no_map_is_needed_where_the_classes_are_the_backbones_own(tmp_path, classes, columns):
    store = named(tmp_path / "test.h5", classes)
    best = np.array(store.features("logits")).argmax(axis=1)
    result = evaluated(Zeroshot(protocol="all"), tmp_path, store)
    expected = [columns.index(b) if b in columns else len(classes) for b in best]
    assert result.predictions().predicted.tolist() == expected
    assert result.extra["label_map"]["name"] == "identity"
    assert result.extra["label_map"]["without_source"] == []
    assert result.dataset["other"]
    assert any("each class of the dataset is a source class" in note for note in result.notes)


def test_the_other_policies_work_without_a_map_too(tmp_path):
    store = named(tmp_path / "test.h5", ("dog", "ant"))
    logits = np.array(store.features("logits"))
    restricted = evaluated(Zeroshot(policy="restricted", protocol="all"), tmp_path, store)
    assert not restricted.dataset["other"]
    assert (restricted.predictions().predicted == logits[:, [4, 0]].argmax(axis=1)).all()
    group = evaluated(Zeroshot(policy="group", protocol="all"), tmp_path, store)
    source = softmax(logits.astype(np.float64), axis=1)
    pooled = np.column_stack([source[:, 4], source[:, 0], source[:, 1:4].sum(axis=1)])
    assert (group.predictions().predicted == pooled.argmax(axis=1)).all()


def test_where_every_source_class_is_a_class_of_the_dataset_there_is_no_other(tmp_path):
    classes = ("s4", "s3", "s2", "s1", "s0")
    store = named(tmp_path / "test.h5", classes)
    result = evaluated(Zeroshot(protocol="all"), tmp_path, store)
    assert not result.dataset["other"]
    assert result.predictions().scores.shape == (24, 5)
    assert "coverage" not in result.summary["metrics"]
    assert any("there is no 'other'" in note for note in result.notes)


def test_a_name_that_two_source_classes_have_is_not_guessed_at(tmp_path):
    store = named(tmp_path / "test.h5", ("crane", "ant"))
    with pytest.raises(LabelMapError, match="not every class is a class of the source"):
        evaluate(Zeroshot(protocol="all"), store)


def test_a_named_map_is_used_all_the_same(tmp_path):
    store = named(tmp_path / "test.h5", CLASSES[:2])
    rows = [(name, "ant") for name in ("s0", "s1", "s2", "s3")] + [("s4", "bee")]
    path = write_map(tmp_path / "map.csv", rows, CLASSES[:2])
    plain = evaluate(Zeroshot(protocol="all"), store)
    mapped = evaluate(Zeroshot(protocol="all", map=str(path)), store)
    assert mapped.extra["label_map"]["name"] == str(path)
    assert mapped.key != plain.key


def test_the_layer_only_says_which_stores(store, tmp_path):
    path = str(write_map(tmp_path / "map.csv"))
    keys = {
        evaluate(Zeroshot(protocol="all", map=path, layer=layer), store).key
        for layer in (None, "avgpool")
    }
    assert len(keys) == 1


def test_other_training_images_would_change_nothing(tmp_path):
    best, labels = [0, 3, 1, 2, 0, 4, 0, 2, 2], [0, 0, 0, 1, 1, 2, 2, 1, 1]
    folds = (np.arange(4), np.arange(4, 9))
    train = store_of(tmp_path / "train.h5", best, labels, folds=folds)
    test = store_of(tmp_path / "test.h5", best, labels, split="test")
    result = zeroshot(train, tmp_path, test=test, protocol="folds")
    assert result.protocol["training"] is None
    assert result.summary["spread"] == {}
    assert result.summary["accuracy_methods"] is None
    # Images of the training split need not be embedded.
    cost = result.cost
    assert cost["total_seconds"] == cost["extract_seconds"] + cost["predict_seconds"]
    assert cost["extract_seconds"] == test.run["seconds"]
