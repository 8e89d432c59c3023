"""Recipes: what they mean, and that every mistake is told with its line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.errors import FeatpipeError, RecipeError, UsageError
from featpipe.steps import STEPS
from featpipe.steps.recipe import find_recipe, parse_recipe, read_recipe

RECIPES = Path(__file__).resolve().parents[2] / "pipelines"
EXTRACT = "  - {step: extract, model: resnet18, dataset: stl10}\n"


def parsed(text, *overrides):
    return parse_recipe(text, "my.yaml", "my", overrides)


def labels(recipe, number=0):
    return [variant.label for variant in recipe.steps[number].variants]


# What a recipe means


def test_a_list_at_an_option_of_one_value_is_an_axis():
    recipe = parsed(
        "steps:\n  - {step: extract, model: [resnet18, resnet50], dataset: [stl10, digits]}"
    )
    assert labels(recipe) == [
        "model=resnet18,dataset=stl10",
        "model=resnet18,dataset=digits",
        "model=resnet50,dataset=stl10",
        "model=resnet50,dataset=digits",
    ]


def test_an_option_of_several_values_keeps_its_list_and_a_list_of_lists_is_an_axis():
    recipe = parsed("steps:\n  - {step: svm, c: [0.1, 1]}")
    assert [variant.step for variant in recipe.steps[0].variants] == [
        STEPS.get("svm")(c=(0.1, 1.0))
    ]
    recipe = parsed("steps:\n  - {step: svm, c: [[0.1, 1], [2]]}")
    assert labels(recipe) == ["c=0.1+1", "c=2"]
    assert [variant.step.c for variant in recipe.steps[0].variants] == [(0.1, 1.0), (2.0,)]


def test_grid_gives_a_method_the_values_it_chooses_from():
    recipe = parsed("steps:\n  - {step: svm, grid: {c: [1e-3, 1.0e-2]}}")
    assert recipe.steps[0].variants[0].step == STEPS.get("svm")(c=(0.001, 0.01))


def test_each_couples_options_and_its_label_is_as_short_as_it_can_be():
    recipe = parsed(
        "steps:\n"
        "  - step: extract\n"
        "    dataset: stl10\n"
        "    each:\n"
        "      - {model: resnet18, weights: a/first.safetensors}\n"
        "      - {model: resnet50, weights: second.safetensors}\n"
    )
    assert labels(recipe) == ["model=resnet18", "model=resnet50"]
    weights = [variant.step.weights for variant in recipe.steps[0].variants]
    assert weights == ["a/first.safetensors", "second.safetensors"]


@pytest.mark.parametrize(
    ("step", "entries", "wanted"),
    [
        ("svm", "[{title: A, seed: 1}, {title: B, seed: 2}]", ["seed=1", "seed=2"]),
        ("compare", "[{out: a.md}, {out: b.md}]", ["out=a.md", "out=b.md"]),
    ],
)
def test_what_changes_no_number_distinguishes_only_where_nothing_else_does(step, entries, wanted):
    assert labels(parsed(f"steps:\n  - {{step: {step}, each: {entries}}}")) == wanted


def test_the_limit_reaches_the_steps_that_read_images():
    text = f"steps:\n{EXTRACT}  - {{step: explain, limit: 3}}"
    extract, explain = parse_recipe(text, limit=5).steps
    assert (extract.variants[0].step.limit, explain.variants[0].step.limit) == (5, 3)
    assert parsed(text, "limit=5").steps[1].variants[0].step.limit == 5
    with pytest.raises(UsageError, match="--limit 5 fits no step"):
        parse_recipe("steps:\n  - step: explain", limit=5)


def test_defaults_reach_every_step_that_has_the_option_and_yield_to_its_own():
    recipe = parsed(
        "defaults: {seed: 7, limit: 5}\n"
        f"steps:\n{EXTRACT}  - {{step: svm}}\n  - {{step: knn, seed: 1}}"
    )
    extract, svm, knn = (part.variants[0].step for part in recipe.steps)
    assert (extract.limit, svm.seed, knn.seed) == (5, 7, 1)


def test_set_wins_over_everything_in_all_steps_or_in_one():
    text = (
        "defaults: {seed: 7}\n"
        f"steps:\n{EXTRACT}  - {{step: svm, seed: 3}}\n"
        "  - {step: knn, each: [{seed: 1}, {seed: 2}]}"
    )
    recipe = parsed(text, "seed=9", "extract.model=[resnet50, resnet18]", "image-size=64")
    assert labels(recipe) == ["model=resnet50", "model=resnet18"]
    assert {variant.step.image_size for variant in recipe.steps[0].variants} == {64}
    assert [variant.step.seed for variant in recipe.steps[1].variants] == [9]
    assert [variant.step.seed for variant in recipe.steps[2].variants] == [9]
    one = parsed(text, "svm.seed=9")
    assert one.steps[1].variants[0].step.seed == 9
    assert labels(one, 2) == ["seed=1", "seed=2"]


def test_anchors_and_merge_keys_mean_what_yaml_says():
    recipe = parsed(
        "steps:\n"
        "  - &base {step: svm, name: a, seed: 1, max-iter: 10}\n"
        "  - {<<: *base, name: b, seed: 2}\n"
    )
    steps = [part.variants[0].step for part in recipe.steps]
    assert [(step.seed, step.max_iter) for step in steps] == [(1, 10), (2, 10)]


def test_the_name_is_that_of_the_file_unless_the_recipe_has_one(tmp_path):
    path = tmp_path / "photos.yaml"
    path.write_text(f"steps:\n{EXTRACT}")
    assert read_recipe(path).name == "photos"
    path.write_text(f"name: mine\nsteps:\n{EXTRACT}")
    assert read_recipe(path).name == "mine"


# Mistakes, each with its line

WRONG = {
    "a list": ("- 1", "A recipe has to be a mapping", "line 1", None),
    "a text": ("hello", "A recipe has to be a mapping", "line 1", None),
    "nothing": ("", "A recipe has to be a mapping", "line 1", None),
    "no yaml": ("steps: [", "This is not YAML", "line 1", None),
    "a tab": ("steps:\n\t- step: svm", "This is not YAML", "line 2", None),
    "no steps": ("name: x", "needs a list of steps", "line 1", None),
    "no list": ("name: x\nsteps: 3", "needs a list of steps", "line 2", None),
    "empty": ("steps: []", "needs a list of steps", "line 1", None),
    "top key": (f"stps: 1\nsteps:\n{EXTRACT}", "has no 'stps'", "line 1", "'steps'"),
    "default": (f"defaults:\n  sed: 1\nsteps:\n{EXTRACT}", "has no 'sed'", "line 2", "'seed'"),
    "step a text": (f"steps:\n{EXTRACT}  - svm", "A step has to be a mapping", "line 3", None),
    "no kind": ("steps:\n  - {stpe: svm}", "does not name its step", "line 2", None),
    "kind": ("steps:\n  - step: smv", "There is no step named 'smv'", "line 2", "'svm'"),
    "option": (
        "steps:\n  - step: svm\n    seed: 1\n    max-itr: 3",
        "The step 'svm' has no 'max_itr'",
        "line 4",
        "'max_iter'",
    ),
    "each option": (
        "steps:\n  - step: svm\n    each:\n      - sed: 1",
        "The step 'svm' has no 'sed'",
        "line 4",
        "'seed'",
    ),
    "model": (
        "steps:\n  - step: extract\n    dataset: stl10\n    model: reznet18",
        "There is no model named 'reznet18'",
        "line 4",
        "'resnet18'",
    ),
    "model in a list": (
        "steps:\n  - step: extract\n    dataset: stl10\n    model:\n      - resnet18\n"
        "      - reznet18",
        "There is no model named 'reznet18'",
        "line 6",
        "'resnet18'",
    ),
    "type": ("steps:\n  - step: svm\n    seed: many", "--seed cannot be 'many'", "line 3", None),
    "mapping": ("steps:\n  - step: svm\n    seed: {a: 1}", "--seed cannot be", "line 3", None),
    "date": ("steps:\n  - step: svm\n    title: 2024-01-01", "--title cannot be", "line 3", None),
    "bad date": ("steps:\n  - {step: svm, title: 2024-13-45}", "This is not YAML", "my.yaml", None),
    "minimum": ("steps:\n  - step: svm\n    seed: -1", "--seed cannot be -1", "line 3", None),
    "choice": (
        "steps:\n  - step: zeroshot\n    policy: argmx",
        "'argmx' is not a choice",
        "line 3",
        "'argmax'",
    ),
    "required": ("steps:\n  - {step: extract, model: resnet18}", "needs dataset", "line 2", None),
    "empty axis": ("steps:\n  - step: svm\n    seed: []", "is an empty list", "line 3", None),
    "empty each": ("steps:\n  - step: svm\n    each: []", "is an empty list", "line 3", None),
    "grid": ("steps:\n  - {step: svm, grid: {seed: [1]}}", "has no 'seed'", "line 2", None),
    "gridless": ("steps:\n  - {step: centroid, grid: {c: [1]}}", "has no 'c'", "line 2", None),
    "grid twice": (
        "steps:\n  - step: svm\n    c: 1\n    grid: {c: 2}",
        "both under 'grid' and next to it",
        "line 4",
        None,
    ),
    "two names": (
        "steps:\n  - step: svm\n  - step: svm",
        "Two steps are called 'svm'",
        "line 3",
        "name: svm2",
    ),
    "bad name": ("steps:\n  - step: svm\n    name: a/b", "cannot be a name", "line 3", None),
    "key twice": (
        "steps:\n  - step: svm\n    seed: 1\n    seed: 2",
        "The key 'seed' occurs twice",
        "lines 3 and 4",
        None,
    ),
    "from nobody": (
        f"steps:\n{EXTRACT}  - {{step: svm, from: [extrat]}}",
        "no step 'extrat'",
        "line 3",
        "'extract'",
    ),
    "from a number": ("steps:\n  - {step: svm, from: 3}", "'from' takes a list", "line 2", None),
    "object": (
        "steps: !!python/object/apply:os.system ['true']",
        "is not allowed",
        "line 1",
        None,
    ),
    "scalar object": ("steps: !!python/name:os.system x", "This is not YAML", "line 1", None),
    "unknown alias": ("steps: *nobody", "This is not YAML", "line 1", None),
    "key a number": ("steps: []\n7: x", "A key has to be a text", "line 2", None),
    "key nothing": ("~: x\nsteps: []", "A key has to be a text", "line 1", None),
    "name of dots": ("steps:\n  - {step: svm, name: ..}", "cannot be a name", "line 2", None),
    "protocol": ("steps:\n  - {step: svm, protocol: kfold:1}", "not a protocol", "line 2", None),
    "schedule": (
        "steps:\n  - step: finetune\n    model: resnet9\n    dataset: cifar10\n"
        "    schedule: multistep:5,3",
        "needs ascending epochs",
        "line 5",
        None,
    ),
    "head": (
        "steps:\n  - step: finetune\n    model: resnet9\n    dataset: cifar10\n    head: mlp:0",
        "needs its number of hidden neurons",
        "line 5",
        None,
    ),
    "too many tasks": (
        f"steps:\n  - step: svm\n    seed: {list(range(60))}\n    repeats: {list(range(1, 60))}",
        "make too many tasks",
        "line 2",
        None,
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_told_with_its_line_and_the_nearest_name(case):
    text, what, where, next_step = WRONG[case]
    with pytest.raises(RecipeError) as caught:
        parsed(text)
    assert what in caught.value.what
    assert "my.yaml" in caught.value.details["where"]
    assert where in caught.value.details["where"]
    if next_step is not None:
        assert next_step in caught.value.details["next"]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("seed", "is not an assignment"),
        ("=3", "is not an assignment"),
        ("svn.seed=1", "fits no step"),
        ("sed=1", "fits no step"),
        ("svm.layers=1", "fits no step"),
        ("seed=[", "This is not YAML"),
        ("seed=x", "--seed cannot be 'x'"),
    ],
)
def test_a_wrong_set_is_refused(override, what):
    with pytest.raises(UsageError) as caught:
        parsed(f"steps:\n{EXTRACT}  - step: svm", override)
    assert what in caught.value.what
    assert "line" not in caught.value.details.get("where", "") or "--set" in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "binary.yaml")


# Properties

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False), st.text(max_size=5)
)
KEYS = st.sampled_from(
    ["steps", "step", "name", "from", "grid", "each", "defaults", "seed", "c", "model", "x"]
)
NAMES = st.sampled_from(["svm", "extract", "report", "resnet18", "stl10", "svm2"])
VALUES = st.recursive(
    SCALARS | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(text=st.text(max_size=60) | VALUES.map(yaml.safe_dump))
@settings(deadline=None, max_examples=200)
def test_whatever_stands_in_the_file_only_explained_errors_come_out(text):
    with suppress(FeatpipeError):
        parsed(text)


RESOLVED = [
    f"steps:\n{EXTRACT}  - {{step: svm, grid: {{c: [1, 2]}}, seed: [0, 1], from: [extract]}}",
    "defaults: {seed: 4}\nsteps:\n  - {step: extract, each: [{model: resnet18}, {model: resnet50}],"
    " dataset: stl10, layer: [[avgpool], [layer3, avgpool]]}\n  - {step: knn, name: near}",
]


@pytest.mark.parametrize("text", RESOLVED)
def test_the_resolved_recipe_is_a_recipe_for_the_same_tasks(text):
    recipe = parsed(text, "limit=3")
    again = parsed(yaml.safe_dump(recipe.resolved))
    assert [part.variants for part in again.steps] == [part.variants for part in recipe.steps]
    assert [part.sources for part in again.steps] == [part.sources for part in recipe.steps]
    assert again.name == recipe.name
    assert isinstance(again.steps[0].variants[0].step, STEPS.get("extract"))
    assert again.steps[0].variants[0].step.limit == 3


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_that_comes_along_can_be_read(path):
    assert read_recipe(path).name == path.stem


def test_an_axis_over_an_option_that_changes_no_number_is_refused():
    text = "steps:\n  - step: extract\n    model: glyphnet\n    dataset: digits\n"
    for line, option in (
        ("batch_size: [8, 64]", "batch-size"),
        ("on_error: [fail, skip]", "on-error"),
        ("each: [{workers: [1, 2]}]", "workers"),
        ("each: [{workers: 1}, {workers: 2}]", "workers"),
        ("runtime: [torch, openvino]", "runtime"),
        ("runtime: [auto, torch]", "runtime"),
    ):
        with pytest.raises(RecipeError, match="they change no number") as caught:
            parsed(text + f"    {line}")
        assert repr(option) in caught.value.what
        assert "line 5" in caught.value.details["where"]
    assert parsed(text + "    batch-size: [8]").steps[0].variants[0].step.batch_size == 8
    assert (
        len(
            parsed(text + "    precision: bfloat16\n    runtime: [torch, openvino]")
            .steps[0]
            .variants
        )
        == 2
    )


def test_an_axis_over_an_option_that_changes_no_number_is_refused_where_no_file_is_written():
    text = "steps:\n  - step: compare\n    results: [a]\n"
    with pytest.raises(RecipeError, match=r"'force' .* they change no number"):
        parsed(text + "    force: [true, false]")
    assert len(parsed(text + "    margin: [1, 2]").steps[0].variants) == 2


def test_tasks_that_would_write_one_file_are_left_to_the_plan():
    recipe = parsed("steps:\n  - {step: compare, dataset: [a, b], out: t.md}")
    assert labels(recipe) == ["dataset=a", "dataset=b"]


def test_a_table_may_be_written_in_two_formats():
    recipe = parsed("steps:\n  - {step: compare, results: [a], out: [t.md, t.tex]}")
    assert labels(recipe) == ["out=t.md", "out=t.tex"]


def test_an_option_is_parsed_once_for_each_task(monkeypatch):
    from featpipe.steps.options import OptionSpec

    values = []
    parse = OptionSpec.parse
    monkeypatch.setattr(
        OptionSpec, "parse", lambda spec, value: values.append(value) or parse(spec, value)
    )
    parsed("steps:\n  - {step: svm, title: only once, seed: 3}")
    assert values.count("only once") == 1


# Where recipes are


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "pipelines/demo.yaml"])
def test_a_recipe_is_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name).read_text() == (RECIPES / "demo.yaml").read_text()


def test_a_file_of_ones_own_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").touch()
    assert find_recipe("demo.yaml") == Path("demo.yaml")


@pytest.mark.parametrize(
    ("name", "nearest"), [("dmo.yaml", "demo"), ("stl1O", "stl10"), ("phots.yaml", "photos.yaml")]
)
def test_the_nearest_recipe_is_named_whatever_its_ending(name, nearest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.yaml").write_text("steps: []")
    with pytest.raises(RecipeError) as caught:
        find_recipe(name)
    assert caught.value.details["next"] == f"did you mean {nearest!r}?"


@pytest.mark.parametrize("name", ["dmeo", "other/demo.yaml", "."])
def test_what_is_no_recipe_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no recipe"):
        find_recipe(name)
