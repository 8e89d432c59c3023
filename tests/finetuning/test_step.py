"""The step: what it is called by, what is up to date, what it needs, what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from featpipe.backbones.runtime import choose_device
from featpipe.errors import FeatpipeError, MissingExtraError, UnknownNameError, UsageError
from featpipe.evaluation.result import Result
from featpipe.finetuning.run import FinetuneData
from featpipe.finetuning.step import Finetune, parse
from featpipe.steps import STEPS

GOLDEN = {
    "defaults": "6305f56b21145534",
    "a stage": "8dfa063667768f4d",
    "from scratch": "d1567a696f2b951c",
}


def test_what_changes_no_number_is_not_in_the_key(make_step, context):
    step = make_step()
    data = FinetuneData(step, context)

    def key_with(**options):
        other = FinetuneData(step.replace(**options), context)
        other.trunk = data.trunk  # none of the options below changes it
        return other.key

    same = {
        "title": "Mine",
        "force": True,
        "on_error": "skip",
        "workers": 1,
        "download": False,
        "unfreeze": "none",
        "precision": "float32",
        "batch_norm": "keep",
        "image_size": 32,
        "protocol": "split",
    }
    assert {name: key_with(**{name: value}) == data.key for name, value in same.items()} == (
        dict.fromkeys(same, True)
    )
    other = {"lr": 0.1, "limit": 12, "dtype": "float32", "seed": 1, "augment": ("flip",)}
    keys = {key_with(**{name: value}) for name, value in other.items()}
    assert len(keys - {data.key}) == len(other)
    assert FinetuneData(make_step(fit="whole"), context).key != data.key


# What is left to choose, and the same said in words: glyphnet on the CPU, its weights as a file.
SAME = [
    ("unfreeze", None, "none"),
    ("precision", "auto", "float32"),
    ("batch_norm", "auto", "keep"),
    ("protocol", "auto", "split"),
    ("image_size", None, 32),
    ("split", None, ("train", "test")),
    ("eps", None, 1e-8),
    ("betas", None, (0.9, 0.999)),
    ("loss", ("triplet:1",), ("cross-entropy", "triplet:1")),
]
SAME_ELSEWHERE = [
    ("device", "auto", str(choose_device()), {}),
    ("momentum", None, 0.0, {"optimizer": "sgd"}),
    ("weights", "DEFAULT", "GLYPHS_V1", {"weights": "DEFAULT"}),
    ("weights", "DEFAULT", "none", {"model": "convnet", "weights": "DEFAULT"}),
    ("unfreeze", None, "all", {"weights": "none"}),
    ("batch_norm", "auto", "update", {"weights": "none"}),
    ("model", "resnet20", "cifar_resnet20", {"weights": "none"}),
]


@pytest.mark.parametrize(
    ("name", "automatic", "spelled_out", "others"),
    [(*case, {}) for case in SAME] + SAME_ELSEWHERE,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_auto_and_what_it_resolves_to_share_one_key(
    make_step, context, name, automatic, spelled_out, others
):
    step = make_step(**others)
    one, other = (step.replace(**{name: value}) for value in (automatic, spelled_out))
    data = [FinetuneData(each, context) for each in (one, other)]
    assert data[0].key == data[1].key
    requests = {  # whichever of the two was run, both are recognised
        asked.request(context, ran.extraction.sources, ran.automatic)
        for asked in (one, other)
        for ran in data
    }
    assert len(requests) == 1


def test_real_keys_are_the_same_in_every_version(context, monkeypatch):
    """A key that changes makes every user's results stale: raise ``revision`` if that is meant."""
    monkeypatch.setattr("featpipe.finetuning.run.package_version", lambda _: "2.0")
    digits = {"model": "glyphnet", "dataset": "digits", "limit": 60, "device": "cpu"}
    keys = {
        "defaults": Finetune(**digits),
        "a stage": Finetune(**digits, unfreeze="layer3+", optimizer="sgd", momentum=0.9),
        "from scratch": Finetune(**digits, weights="none", augment=("flip",), loss=("center:1",)),
    }
    found = {name: FinetuneData(step, context).key[:16] for name, step in keys.items()}
    assert found == GOLDEN


def test_what_was_asked_for_before_is_recognised_without_torch(make_step, context, monkeypatch):
    step = make_step(epochs=1)
    assert not step.status(context).done
    assert step.estimate(context) is None
    done = step.run(context)
    status = step.status(context)
    assert (status.done, status.paths) == (True, done.paths)
    assert Result.load(done.paths[0]).key.startswith(status.key)
    assert step.replace(title="Mine").status(context).done
    assert step.replace(unfreeze="none", protocol="split", image_size=32).status(context).done
    assert not step.replace(lr=0.1).status(context).done
    assert not step.replace(force=True).status(context).done
    seconds, n_bytes, basis = step.replace(epochs=10).estimate(context)
    cost = Result.load(done.paths[0]).cost
    assert seconds == pytest.approx(
        10 * (cost["search_seconds"] + cost["fit_seconds"] + cost["predict_seconds"])
    )
    assert n_bytes == cost["model_bytes"]
    assert "by epochs" in basis
    (context.workspace.models / Result.load(done.paths[0]).files["model"]).unlink()
    assert not step.status(context).done


def test_the_step_is_light():
    code = "import sys, featpipe.finetuning.step, featpipe.finetuning.explain; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "sklearn", "skorch", "h5py", "pandas", "captum", "timm", "PIL"}
    assert not heavy & set(ended.stdout.split())


def test_missing_extras_are_known_from_the_options(make_step, context, monkeypatch):
    needs = {
        "pytorch_metric_learning": make_step(loss="triplet:1"),
        "timm": make_step(model="timm:test_resnet", weights="none"),
    }
    for package, step in needs.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=package):
            step.check_requirements()
        with pytest.raises(MissingExtraError, match=package):
            step.run(context)
    make_step().check_requirements()
    assert not context.workspace.activations.exists()


def test_the_steps_are_registered():
    assert STEPS.get("finetune") is Finetune
    with pytest.raises(UsageError):
        Finetune.from_mapping({"model": "resnet50"})
    with pytest.raises(UnknownNameError):
        Finetune.from_mapping({"model": "resnet50", "dataset": "stl11"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0}, "--lr cannot be 0"),
        ({"lr": float("nan")}, "--lr cannot be nan"),
        ({"lr": 1e40}, "at most 1e+12"),
        ({"seed": 2**40}, "at most"),
        ({"model": "resnet99"}, "did you mean"),
        ({"loss": "triplet:1", "batch_size": 1}, "several classes"),
        ({"loss": "tripelt"}, "did you mean 'triplet'"),
        ({"loss": "triplet:1,triplet:2"}, "names a term twice"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"optimizer": "adam:1"}, "did you mean 'adam'"),
        ({"optimizer": "sgd", "betas": "0.9,0.999"}, "has no --betas"),
        ({"optimizer": "adam", "momentum": 0.9}, "has no --momentum"),
        ({"optimizer": "sgd", "nesterov": True}, "Nesterov"),
        ({"optimizer": "sgd", "momentum": 1.5}, "must be below 1"),
        ({"betas": "0.9"}, "takes two numbers"),
        ({"betas": "0.9,0.99,0.999"}, "takes two numbers"),
        ({"betas": "0.9,1.5"}, "beta"),
        ({"schedule": "multistep"}, "ascending epochs"),
        ({"schedule": "multistep:0"}, "ascending epochs"),
        ({"schedule": "plateau:²"}, "one whole number"),
        ({"head": "mlp"}, "number of hidden neurons"),
        ({"head": "mlp:²"}, "hidden neurons"),
        ({"head": "mlp:99999999999"}, "at most 65536"),
        ({"head": "mpl:50"}, "did you mean 'mlp'"),
        ({"head": "mlp:50", "head_init": "probe"}, "one linear layer"),
        ({"augment": "crop:1.5"}, "whole pixels"),
        ({"protocol": "kfold:1"}, "is not a protocol"),
        ({"protocol": "all"}, "it is for zeroshot"),
        ({"validation": 0, "patience": 3}, "chooses by validation rows"),
        ({"validation": 1.0}, "must be below 1"),
    ],
)
def test_options_that_cannot_be_right_are_refused_at_once(make_step, options, message):
    with pytest.raises(UsageError) as caught:
        make_step(**options)
    assert message.lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unfreeze": "layer9"}, "no stage named 'layer9'"),
        ({"batch_size": 500}, "larger than the training rows"),
        ({"split": "train,train"}, "each value once"),
        ({"model": "resnet18_32_stem", "weights": "none", "image_size": 8}, "failed on an image"),
        ({"augment": "cutout:99"}, "too much for images"),
        ({"classes": "red"}, "at least two classes"),
        ({"weights": "none", "unfreeze": "layer3"}, "untrained"),
        ({"device": "cuda:7"}, "No CUDA device 7 was found"),
    ],
)
def test_what_does_not_fit_network_or_images_is_refused(make_step, context, options, message):
    with pytest.raises(FeatpipeError) as caught:
        make_step(**options).run(context)
    assert message.lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 18}, "larger than the training rows"),
        (
            {"batch_size": 18, "validation": 0, "protocol": "holdout:0.5"},
            "larger than the training",
        ),
        ({"limit": 3}, "too few training rows to hold some out"),
        ({"protocol": "folds"}, "prescribes no folds"),
    ],
)
def test_rows_that_cannot_train_are_refused_before_anything_is_embedded(
    make_step, context, options, message
):
    with pytest.raises(FeatpipeError, match=message):
        make_step(**options).run(context)
    assert not context.workspace.activations.exists()


def test_a_new_title_is_no_reason_to_train_again(make_step, context):
    step = make_step(epochs=1)
    assert step.run(context).status == "done"
    outcome = step.run(context)
    assert outcome.status == "up to date"
    result = Result.load(outcome.paths[0])
    assert step.replace(title="Mine").run(context).status == "up to date"
    assert Result.load(result.path).title == "Mine"
    assert step.run(context).status == "up to date"
    assert Result.load(result.path).title == result.title
    (context.workspace.models / result.files["model"]).unlink()
    assert step.run(context).status == "done", "the trained head is part of what was asked for"


@pytest.mark.parametrize(
    ("kind", "wrong", "nearest"),
    [
        ("head", "mpl:50", "mlp"),
        ("schedule", "cosinus", "cosine"),
        ("loss", "tripelt:1", "triplet"),
        ("augmentation", "cutuot:4", "cutout"),
    ],
)
def test_wrong_names_are_refused(kind, wrong, nearest):
    with pytest.raises(UnknownNameError, match=f"did you mean '{nearest}'"):
        parse(kind, wrong)
