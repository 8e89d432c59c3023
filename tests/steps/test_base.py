"""One definition gives YAML keys, options, help and checks, so they cannot drift."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe.errors import FeatpipeError, MissingExtraError, UsageError
from featpipe.registry import summary_of
from featpipe.steps import STEPS, Context, Step, option, options_of
from featpipe.steps.options import OptionSpec
from featpipe.workspace import Workspace
from tests.stores import sealed

RIGHT = {"model": "resnet50", "dataset": "stl10"}
EXTRACT = STEPS.get("extract")


class Echo(Step):
    """For this test."""

    name = "echo"

    number: int = option(help="A number.", minimum=0)
    share: float | None = option(None, help="A share.", minimum=0)
    names: tuple[str, ...] | None = option(None, help="Names.")
    sizes: tuple[int, ...] = option((1, 2), help="Sizes.", minimum=1)
    where: Path | None = option(None, help="A path.")
    loud: bool = option(False, help="Whether.")
    kind_of: str = option("a", help="Which.", choices=("a", "b"))


def test_values_become_their_types() -> None:
    step = Echo(number="3", share="0.5", names="x, y ,z", sizes=4, where="~/data")
    assert (step.number, step.share, step.names, step.sizes) == (3, 0.5, ("x", "y", "z"), (4,))
    assert step.where == Path.home() / "data"
    assert Echo(number=3.0).number == 3


def test_settings_are_plain_values_that_make_the_same_step() -> None:
    step = Echo(number=1, names=["a"], where="x", loud=True)
    settings = step.settings()
    assert settings["names"] == ["a"]
    assert settings["where"] == "x"
    assert Echo.from_mapping(settings) == step


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"number": "three"}, "a whole number"),
        ({"number": 1.5}, "a whole number"),
        ({"number": float("nan")}, "a whole number"),
        ({"number": float("inf")}, "a whole number"),
        ({"number": True}, "a whole number"),
        ({"number": None}, "a whole number"),
        ({"number": -1}, "at least 0"),
        ({"number": [1]}, "a whole number"),
        ({"number": 1, "share": "nan"}, "at least 0"),
        ({"number": 1, "share": "inf"}, "at least 0"),
        ({"number": 1, "share": {}}, "a number"),
        ({"number": 1, "names": ""}, "at least one value"),
        ({"number": 1, "names": []}, "at least one value"),
        ({"number": 1, "names": ["a", " "]}, "not empty"),
        ({"number": 1, "sizes": "1,0"}, "at least 1"),
        ({"number": 1, "sizes": None}, "a whole number"),
        ({"number": 1, "where": ""}, "not empty"),
        ({"number": 1, "where": "~nobody-of-this-name/x"}, "home folder"),
        ({"number": 1, "loud": "yes"}, "true or false"),
        ({"number": 1, "kind_of": "c"}, "a, b"),
        ({"number": 1, "kind-of": "a", "kind_of": "b"}, "written twice"),
        ({"number": 1, "nmes": "x"}, "did you mean 'names'"),
        ({"number": 1, 7: "x"}, "no option '7'"),
        ({}, "needs number"),
    ],
)
def test_wrong_values_are_explained(options: dict[Any, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Echo.from_mapping(options)
    assert says in str(caught.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(options_of(EXTRACT))), value=JUNK)
def test_any_value_is_taken_or_explained(name: str, value: Any) -> None:
    try:
        step = EXTRACT.from_mapping({**RIGHT, name: value})
    except FeatpipeError:
        return
    assert EXTRACT.from_mapping(step.settings()) == step


@pytest.mark.parametrize("name", STEPS.names())
def test_every_option_is_complete(name: str) -> None:
    step = STEPS.get(name)
    assert step.name == name
    assert summary_of(step).endswith(".")
    assert step.examples
    assert step.makes
    for spec in options_of(step).values():
        assert spec.help.strip()
        if not spec.required and spec.default is not None:
            assert spec.parse(spec.default) == spec.default
        if spec.registry is not None:
            assert spec.names()


def test_keys_may_be_written_with_a_dash() -> None:
    step = EXTRACT.from_mapping({**RIGHT, "image-size": 64})
    assert step.image_size == 64


def test_steps_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        STEPS.get("svm")().seed = 3  # type: ignore[misc]


def test_auto_means_that_the_program_chooses() -> None:
    given = {"model": "glyphnet", "dataset": "digits", "batch_size": "auto"}
    assert EXTRACT.from_mapping(given).batch_size is None


def test_each_option_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    parse = OptionSpec.parse

    def counted(spec: OptionSpec, value: Any) -> Any:
        parsed.append(spec.name)
        return parse(spec, value)

    monkeypatch.setattr(OptionSpec, "parse", counted)
    step = Echo.from_mapping({"number": 1, "names": "x,y"})
    assert sorted(parsed) == sorted(options_of(Echo))
    again = pickle.loads(pickle.dumps(step.replace(number=2)))
    assert again == Echo.from_mapping({"number": 2, "names": "x,y"})
    assert len(parsed) == 2 * len(options_of(Echo))


def test_a_wrong_value_names_its_option() -> None:
    with pytest.raises(UsageError) as caught:
        Echo.from_mapping({"number": 1, "share": "much"})
    assert caught.value.option == "share"


def test_what_a_recipe_binds_is_required_on_the_command_line_only() -> None:
    explain = STEPS.get("explain")
    with pytest.raises(UsageError, match="needs result"):
        explain.from_mapping({})
    assert not explain.from_mapping({}, bound=True).has_inputs()
    assert explain.from_mapping({"result": "x"}).has_inputs()


def test_packages_that_are_not_installed_are_named() -> None:
    class Exotic(Echo):
        def requirements(self):
            return [("json", "none"), ("no_such_package", "exotic")]

    with pytest.raises(MissingExtraError, match="no_such_package") as caught:
        Exotic(number=1).check_requirements()
    assert "featpipe[exotic]" in caught.value.details["next"]


# Identity: what names results.

INPUTS = {"stores": ["0123456789abcdef"], "version": "1.0"}
GOLDEN = {
    "extract": "bbadc40cbd361644",
    "svm": "67a47709679fc9c1",
    "logistic": "bc996a42ee336382",
    "knn": "d9b220ad7c178966",
    "centroid": "554b510a1b352453",
    "zeroshot": "3c977d29a9cd909e",
    "finetune": "ca39c07fb09d15a1",
    "explain": "5953596603ef7a41",
    "compare": "f90fde7cab6af3f3",
    "report": "7f1415829cd72f8d",
}


def example(name: str) -> Step:
    """Return a step with as few options as it needs."""
    required = {"model": "glyphnet", "dataset": "digits", "result": "x"}
    known = options_of(STEPS.get(name))
    needed = {key: value for key, value in required.items() if key in known and known[key].required}
    return STEPS.get(name).from_mapping(needed)


@pytest.mark.parametrize("name", STEPS.names())
def test_keys_are_the_same_in_every_version(name: str) -> None:
    """A key that changes makes every user's results stale: raise ``revision`` if that is meant."""
    assert example(name).key(INPUTS)[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", STEPS.names())
def test_an_option_that_is_added_changes_no_key(name: str) -> None:
    before = example(name)

    class Extended(type(before)):
        sharpness: float = option(1.0, help="Added later.")
        engine: str = option("fast", help="Chosen later.", neutral="slow")

    values = {name: getattr(before, name) for name in options_of(type(before))}
    unchanged = Extended(**values, engine="slow")
    assert unchanged.key(INPUTS) == before.key(INPUTS)
    assert Extended(**values, engine="slow", sharpness=2.0).key(INPUTS) != before.key(INPUTS)
    assert Extended(**values).key(INPUTS) != before.key(INPUTS)  # not what was done before


@pytest.mark.parametrize("name", STEPS.names())
def test_a_raised_revision_changes_every_key(name: str) -> None:
    before = example(name)
    raised = type("Raised", (type(before),), {"revision": before.revision + 1})
    assert raised.from_mapping(before.settings()).key(INPUTS) != before.key(INPUTS)


def test_results_are_stale_once_the_revision_is_raised(tmp_path: Path) -> None:
    store, context = sealed(tmp_path / "a.h5"), Context(Workspace(tmp_path), jobs=1)
    centroid = STEPS.get("centroid")
    assert centroid(train=store.path).run(context).status == "done"
    assert centroid(train=store.path).run(context).status == "up to date"
    raised = type("Raised", (centroid,), {"revision": centroid.revision + 1})
    assert not raised(train=store.path).status(context).done
    assert raised(train=store.path).run(context).status == "done"
    assert raised(train=store.path, title="Another name").key(INPUTS) == raised().key(INPUTS)


def test_only_what_changes_numbers_is_part_of_the_identity() -> None:
    svm = STEPS.get("svm")
    assert svm(title="Mine", force=True, save_model=False).key(INPUTS) == svm().key(INPUTS)
    assert svm(dataset="stl10", train="a.h5").key(INPUTS) == svm().key(INPUTS)
    assert svm(seed=1).key(INPUTS) != svm().key(INPUTS)
    assert svm().key({**INPUTS, "version": "1.1"}) != svm().key(INPUTS)
    assert svm().key(INPUTS, protocol="split") == svm(protocol="split").key(INPUTS)
