"""One definition gives YAML keys, options, help and checks, so they cannot drift."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe.errors import FeatpipeError, UsageError
from featpipe.steps.old import STEPS, ExtractStep, Outcome, Step, SvmStep, options_of
from featpipe.steps.oldbase import Context, option

RIGHT = {"model": "resnet50", "dataset": "stl10"}


def run_echo(step: EchoStep, context: Context) -> Outcome:
    return Outcome("done", f"{step.number} {context.jobs}")


@dataclass(frozen=True, kw_only=True)
class EchoStep(Step):
    kind = "echo"
    summary = "For this test."
    runner = f"{__name__}:run_echo"

    number: int = option(help="A number.", minimum=0)
    share: float | None = option(None, help="A share.", minimum=0)
    names: tuple[str, ...] | None = option(None, help="Names.")
    sizes: tuple[int, ...] = option((1, 2), help="Sizes.", minimum=1)
    where: Path | None = option(None, help="A path.")
    loud: bool = option(False, help="Whether.")
    kind_of: str = option("a", help="Which.", choices=("a", "b"))


def test_values_become_their_types() -> None:
    step = EchoStep(number="3", share="0.5", names="x, y ,z", sizes=4, where="~/data")
    assert (step.number, step.share, step.names, step.sizes) == (3, 0.5, ("x", "y", "z"), (4,))
    assert step.where == Path.home() / "data"
    assert EchoStep(number=3.0).number == 3


def test_settings_are_plain_values_that_make_the_same_step() -> None:
    step = EchoStep(number=1, names=["a"], where="x", loud=True)
    settings = step.settings()
    assert settings["names"] == ["a"]
    assert settings["where"] == "x"
    assert EchoStep.from_mapping(settings) == step


def test_a_step_runs_what_it_names() -> None:
    from tests import test_steps

    if test_steps.__name__ != __name__:
        pytest.skip("this module was imported under another name")
    assert EchoStep(number=1).run(Context(jobs=2)).message == "1 2"


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
        EchoStep.from_mapping(options)
    assert says in str(caught.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(options_of(ExtractStep))), value=JUNK)
def test_any_value_is_taken_or_explained(name: str, value: Any) -> None:
    try:
        step = ExtractStep.from_mapping({**RIGHT, name: value})
    except FeatpipeError:
        return
    assert ExtractStep.from_mapping(step.settings()) == step


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_option_is_complete(step: type[Step]) -> None:
    assert step.summary.endswith(".")
    assert step.examples
    for spec in options_of(step).values():
        assert spec.help.strip()
        if not spec.required and spec.default is not None:
            assert spec.parse(spec.default) == spec.default
        if spec.registry:
            assert spec.names()


def test_keys_may_be_written_with_a_dash() -> None:
    step = ExtractStep.from_mapping({**RIGHT, "image-size": 64})
    assert step.image_size == 64


def test_steps_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        SvmStep().seed = 3  # type: ignore[misc]


def test_auto_means_that_the_program_chooses() -> None:
    given = {"model": "glyphnet", "dataset": "digits", "batch_size": "auto"}
    assert ExtractStep.from_mapping(given).batch_size is None
