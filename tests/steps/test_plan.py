"""From a recipe to tasks: what needs what, and plans that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models as resnet_models

from featpipe.errors import (
    MissingExtraError,
    RecipeError,
    UnknownNameError,
    UsageError,
    WeightsError,
)
from featpipe.steps import Context
from featpipe.steps.plan import Plan
from featpipe.steps.recipe import parse_recipe
from featpipe.workspace import Workspace

EXTRACT = "  - {step: extract, model: [resnet18, resnet50], dataset: stl10}\n"


@pytest.fixture
def plan_of(tmp_path):
    def plan(text, *only):
        recipe = parse_recipe(f"steps:\n{text}", "my.yaml", "my")
        return Plan.of(recipe, Context(Workspace(tmp_path)), only)

    return plan


def needs(plan):
    return {task.name: task.needs for task in plan.tasks}


def test_a_method_is_evaluated_on_every_extraction_that_fits(plan_of):
    plan = plan_of(EXTRACT + "  - {step: svm, seed: [0, 1]}\n  - {step: knn, model: resnet50}")
    assert needs(plan) == {
        "extract[model=resnet18]": (),
        "extract[model=resnet50]": (),
        "svm[seed=0,model=resnet18]": ("extract[model=resnet18]",),
        "svm[seed=0,model=resnet50]": ("extract[model=resnet50]",),
        "svm[seed=1,model=resnet18]": ("extract[model=resnet18]",),
        "svm[seed=1,model=resnet50]": ("extract[model=resnet50]",),
        "knn[model=resnet50]": ("extract[model=resnet50]",),
    }


def test_from_chooses_among_extractions_and_two_alike_get_names(plan_of):
    plan = plan_of(
        "  - {step: extract, name: a, model: resnet18, dataset: stl10}\n"
        "  - {step: extract, name: b, model: resnet18, dataset: stl10, fit: whole}\n"
        "  - {step: svm, from: [b]}\n  - step: knn"
    )
    assert needs(plan) == {
        "a": (),
        "b": (),
        "svm[from=b]": ("b",),
        "knn[from=a]": ("a",),
        "knn[from=b]": ("b",),
    }


@pytest.mark.parametrize(
    "choice",
    ["weights: [x/a.pt, y/a.pt]", "each: [{weights: x/a.pt}, {weights: y/a.pt}]"],
    ids=["axis", "each"],
)
def test_files_of_one_name_in_two_folders_make_two_tasks(plan_of, choice):
    plan = plan_of(f"  - {{step: finetune, model: resnet18, dataset: stl10, {choice}}}\n")
    assert [task.name for task in plan.tasks] == [
        "finetune[weights=x/a.pt]",
        "finetune[weights=y/a.pt]",
    ]


def test_results_named_in_a_recipe_are_compared_with_its_own(plan_of):
    plan = plan_of(EXTRACT + "  - step: svm\n  - {step: compare, results: [old.json]}")
    task = plan.tasks[-1]
    bound = task.step.bind([[Path("one.json")], [Path("two.json")]])
    assert [str(name) for name in bound.results] == ["old.json", "one.json", "two.json"]


def test_steps_may_be_written_in_any_order(plan_of):
    plan = plan_of("  - step: report\n  - step: svm\n" + EXTRACT.replace("[resnet18, ", "[") + "")
    assert [task.name for task in plan.tasks] == ["extract", "svm", "report"]


def test_results_come_from_all_methods_or_those_named(plan_of):
    plan = plan_of(
        "  - {step: extract, model: resnet18, dataset: stl10}\n  - step: svm\n  - step: knn\n"
        "  - {step: finetune, model: resnet18, dataset: stl10}\n  - step: explain\n"
        "  - step: compare\n  - {step: report, from: [svm, finetune]}"
    )
    wanted = needs(plan)
    assert wanted["finetune"] == ()
    assert wanted["explain"] == ("finetune",)
    assert wanted["compare"] == ("svm", "knn", "finetune")
    assert wanted["report"] == ("svm", "finetune")
    names = [task.name for task in plan.tasks]
    assert names.index("explain") < names.index("report")


def test_a_report_per_dataset_has_the_results_on_it(plan_of):
    plan = plan_of(
        "  - {step: extract, model: resnet18, dataset: [stl10, digits]}\n  - step: svm\n"
        "  - {step: report, dataset: [stl10, digits]}"
    )
    wanted = needs(plan)
    assert wanted["report[dataset=stl10]"] == ("svm[dataset=stl10]",)
    assert wanted["report[dataset=digits]"] == ("svm[dataset=digits]",)


def test_reports_are_named_after_the_recipe(plan_of, tmp_path):
    method = "  - {step: svm, train: a.h5}\n"
    assert plan_of(method + "  - step: report").tasks[-1].step.out == tmp_path / "reports" / "my"
    two = plan_of(method + "  - step: report\n  - {step: report, name: short, gallery: 0}")
    outs = [task.step.out.name for task in two.tasks[1:]]
    assert outs == ["my-report", "my-short"]


def test_files_are_placed_once_in_a_workspace_with_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = "  - {step: svm, train: a.h5}\n  - step: report\n  - {step: report, name: b, out: c/d}"
    plan = Plan.of(
        parse_recipe(f"steps:\n{steps}", "my.yaml", "my"), Context(Workspace(Path("ws")))
    )
    assert [task.step.out for task in plan.tasks[1:]] == [
        Path("ws/reports/my-report"),
        Path("ws/c/d"),
    ]


def test_only_runs_a_step_and_what_it_needs(plan_of):
    text = EXTRACT + "  - step: svm\n  - step: knn\n  - {step: compare, from: [knn]}"
    assert [task.part for task in plan_of(text, "compare").tasks] == [
        *("extract", "extract", "knn", "knn", "compare")
    ]
    one = plan_of(text, "svm[model=resnet50]")
    assert [task.name for task in one.tasks] == ["extract[model=resnet50]", "svm[model=resnet50]"]
    with pytest.raises(UsageError, match="no such step") as caught:
        plan_of(text, "smv")
    assert "'svm'" in caught.value.details["next"]


WRONG = {
    "circle": (
        "  - {step: compare, name: a, from: [b]}\n  - {step: compare, name: b, from: [a]}",
        "circle",
        "line 2",
    ),
    "itself": ("  - {step: svm, from: [svm]}", "circle", "line 2"),
    "no extraction": ("  - step: svm", "makes the features that 'svm' needs", "line 2"),
    "other model": (EXTRACT + "  - {step: svm, model: resnet34}", "makes the features", "line 3"),
    "other layer": (
        "  - {step: extract, model: resnet18, dataset: stl10, layer: [avgpool]}\n"
        "  - {step: svm, layer: layer3}",
        "makes the features",
        "line 3",
    ),
    "no results": (EXTRACT + "  - step: compare", "makes the result", "line 3"),
    "no network": (EXTRACT + "  - step: explain", "makes the network", "line 3"),
    "from a method": (
        EXTRACT + "  - step: svm\n  - {step: knn, from: [svm]}",
        "makes no features",
        "line 4",
    ),
    "from features": (
        EXTRACT + "  - step: svm\n  - {step: report, from: [extract]}",
        "makes no result",
        "line 4",
    ),
    "training from": (
        EXTRACT + "  - {step: finetune, model: resnet18, dataset: stl10, from: [extract]}",
        "starts from no other step",
        "line 3",
    ),
    "same result": (
        EXTRACT + "  - step: svm\n  - {step: svm, name: again, title: Another name}",
        "would overwrite what 'svm[model=resnet18]' makes",
        "line 4",
    ),
    "same report": (
        "  - {step: svm, train: a.h5}\n  - {step: report, name: a, out: x}\n"
        "  - {step: report, name: b, out: x}",
        "would overwrite what 'a' makes",
        "line 4",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_plan_that_cannot_be_is_refused_with_its_line(plan_of, case):
    text, what, line = WRONG[case]
    with pytest.raises(RecipeError) as caught:
        plan_of(text)
    assert what in caught.value.what
    assert caught.value.details["where"] == f"my.yaml, {line}"


def test_two_layers_explained_are_two_tasks(plan_of):
    plan = plan_of(
        "  - {step: finetune, model: resnet18, dataset: stl10}\n"
        "  - {step: explain, layer: [layer3, layer4]}\n  - step: report"
    )
    assert needs(plan)["explain[layer=layer3]"] == ("finetune",)
    assert needs(plan)["explain[layer=layer4]"] == ("finetune",)
    assert [task.name for task in plan.tasks][-1] == "report"


def test_an_extra_that_is_missing_is_found_before_anything_runs(plan_of, monkeypatch):
    monkeypatch.setattr("featpipe.lazy.find_spec", lambda name: None)
    text = "  - {step: finetune, model: resnet18, dataset: stl10, loss: [cross-entropy, triplet:1]}"
    with pytest.raises(MissingExtraError, match="pytorch_metric_learning"):
        plan_of(EXTRACT + "  - step: svm\n" + text)


def test_weights_that_a_model_does_not_have_are_refused_before_anything_runs(plan_of):
    crossed = (
        "  - step: extract\n    dataset: digits\n    model: [resnet18, resnet50]\n"
        "    weights: [IMAGENET1K_V1, IMAGENET1K_V2]\n"
    )
    with pytest.raises(UnknownNameError, match="'IMAGENET1K_V2' for resnet18"):
        plan_of(crossed)
    plan_of(crossed.replace("resnet18", "resnet101"))


@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "pt"])
def test_weights_of_another_resnet_are_refused_before_anything_runs(plan_of, tmp_path, save):
    files = {}
    for model in ("resnet18", "resnet50"):
        with torch.device("meta"):
            names = resnet_models.get_model(model).state_dict()
        suffix = "safetensors" if save is save_file else "pt"
        files[model] = tmp_path / f"{model}.{suffix}"
        save({name: torch.zeros(1) for name in names}, files[model])  # names are all that counts
    crossed = (
        "  - step: extract\n    dataset: digits\n    model: [resnet18, resnet50]\n"
        f"    weights: ['{files['resnet18']}', '{files['resnet50']}']\n"
    )
    with pytest.raises(WeightsError, match="weights are not for resnet18") as caught:
        plan_of(crossed)
    assert "2 blocks of 2" in str(caught.value)
    assert "6 blocks of 3" in str(caught.value)
    assert "under each" in str(caught.value)
    each = "\n".join(f"      - {{model: {m}, weights: '{files[m]}'}}" for m in files)
    paired = f"  - step: extract\n    dataset: digits\n    each:\n{each}\n"
    assert len(plan_of(paired).tasks) == 2


def test_a_damaged_weights_file_is_left_to_the_task_that_reads_it(plan_of, tmp_path):
    for content in (b"", b"{", bytes(99), b"PK\3\4" + bytes(99)):
        (tmp_path / "w.safetensors").write_bytes(content)
        step = (
            f"step: extract, dataset: digits, model: resnet18, weights: '{tmp_path}/w.safetensors'"
        )
        assert plan_of(f"  - {{{step}}}").tasks
