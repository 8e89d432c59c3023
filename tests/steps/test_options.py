"""Options: one definition gives YAML keys, the command line, help and checks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe.errors import FeatpipeError, UsageError
from featpipe.registry import summary_of
from featpipe.steps import STEPS, Step, altered, option, options_of
from featpipe.steps.options import OptionSpec

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


def test_an_inherited_option_is_declared_again_by_what_differs() -> None:
    class Quieter(Echo):
        number: int = altered(Echo.number, 7)
        loud: bool = altered(Echo.loud, affects_result=False)

    known, inherited = options_of(Quieter), options_of(Echo)
    assert Quieter().number == 7
    assert (known["number"].help, known["number"].minimum) == ("A number.", 0)
    assert (known["number"].neutral, known["number"].required) == (7, False)
    assert (known["loud"].affects_result, inherited["loud"].affects_result) == (False, True)
    assert inherited["number"].required


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


def test_a_seed_has_the_bounds_of_those_who_draw() -> None:
    class Drawn(Step):
        """For this test."""

        name = "drawn"
        luck: int = option(0, help="Seed.", seed=True)

    assert Drawn(luck=2**32 - 1).luck == 2**32 - 1
    for wrong in (-1, 2**32):
        with pytest.raises(UsageError, match="--luck cannot be"):
            Drawn(luck=wrong)


def test_keys_may_be_written_with_a_dash() -> None:
    step = EXTRACT.from_mapping({**RIGHT, "image-size": 64})
    assert step.image_size == 64


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
