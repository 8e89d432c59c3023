"""Steps that set results side by side: which results they take, and when a recipe fills them in."""

from __future__ import annotations

from pathlib import Path

import pytest

from featpipe.probes.nearest_mean import Centroid
from featpipe.statistics.step import Compare
from featpipe.steps import Step


class Unrelated(Step):
    """A step that knows no dataset."""

    name = "unrelated"
    makes = ("result",)


def test_results_that_are_named_need_no_other_step():
    assert not Compare().has_inputs()
    assert not Compare(dataset="stl10").has_inputs()
    assert Compare(results=("a", "b")).has_inputs()


@pytest.mark.parametrize(
    ("asked", "producer", "fits"),
    [
        ({}, Centroid(dataset="stl10"), True),
        ({"dataset": "stl10"}, Centroid(dataset="stl10"), True),
        ({"dataset": "stl10"}, Centroid(dataset="cifar10"), False),
        ({}, Unrelated(), True),
        ({"dataset": "stl10"}, Unrelated(), False),
    ],
)
def test_a_recipe_gives_it_the_results_on_its_dataset(asked, producer, fits):
    assert Compare(**asked).accepts(producer) is fits


def test_results_of_a_recipe_join_those_that_are_named():
    made = [(Path("one.json"),), (Path("two.json"), Path("two.skops"))]
    assert Compare().bind(made).results == ("one.json", "two.json")
    bound = Compare(results=("old",), dataset="stl10").bind(made)
    assert (bound.results, bound.dataset) == (("old", "one.json", "two.json"), None)
    assert Compare(results=("old",)).bind([]) == Compare(results=("old",))


def test_a_result_that_two_tasks_mean_is_compared_once():
    # `validation: [auto, kfold:3]` may be one result: the second task finds it up to date.
    assert Compare().bind([(Path("one.json"),), (Path("one.json"),)]).results == ("one.json",)


def test_two_comparisons_may_not_write_one_file():
    assert Compare(out="a.md").output() == Compare(out="a.md", dataset="stl10").output()
    assert Compare(out="a.md").output() != Compare(out="b.md").output()
    assert Compare().output() is None
