"""Steps: what they are made from, what they need, and their identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from featpipe.errors import MissingExtraError, UsageError
from featpipe.steps import STEPS, Context, Step, option, options_of
from featpipe.workspace import Workspace
from tests.steps.toys import Work
from tests.stores import sealed


def test_steps_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        STEPS.get("svm")().seed = 3  # type: ignore[misc]


def test_python_gets_the_same_explanation_of_a_wrong_option_as_a_recipe() -> None:
    with pytest.raises(UsageError, match="no option 'sed'") as caught:
        STEPS.get("svm")(sed=3)
    assert caught.value.details["next"] == "did you mean 'seed'?"
    with pytest.raises(UsageError, match="needs model, dataset"):
        STEPS.get("extract")()


def test_what_a_recipe_binds_is_required_on_the_command_line_only() -> None:
    explain = STEPS.get("explain")
    with pytest.raises(UsageError, match="needs result"):
        explain.from_mapping({})
    assert not explain.from_mapping({}, bound=True).has_inputs()
    assert explain.from_mapping({"result": "x"}).has_inputs()


def test_packages_that_are_not_installed_are_named() -> None:
    class Exotic(Work):
        def requirements(self):
            return [("json", "none"), ("no_such_package", "exotic")]

    with pytest.raises(MissingExtraError, match="no_such_package") as caught:
        Exotic(number=1).check_requirements()
    assert "featpipe[exotic]" in caught.value.details["next"]


# Identity: what names results.

INPUTS = {"stores": ["0123456789abcdef"], "version": "1.0"}
GOLDEN = {
    "extract": "f0685129e10155b9",
    "svm": "da1cbde505c365ef",
    "logistic": "22779ae02b59f473",
    "knn": "cd1b5809d555db2d",
    "centroid": "554b510a1b352453",
    "embed": "f00f4a7a98fa95c6",
    "probe": "c34db4ea49a927c1",
    "zeroshot": "3c977d29a9cd909e",
    "finetune": "ca39c07fb09d15a1",
    "explain": "5953596603ef7a41",
    "audit": "d9a670bcdad5236b",
    "compare": "f90fde7cab6af3f3",
    "report": "7f1415829cd72f8d",
}


def example(name: str) -> Step:
    """Return a step with as few options as it needs."""
    required = {"model": "glyphnet", "dataset": "digits", "result": "x", "out": "x.npz"}
    required["classifier"] = "sklearn.naive_bayes.GaussianNB"
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
        pace: str = option("fast", help="Chosen later.", neutral="slow")

    values = {name: getattr(before, name) for name in options_of(type(before))}
    unchanged = Extended(**values, pace="slow")
    assert unchanged.key(INPUTS) == before.key(INPUTS)
    assert Extended(**values, pace="slow", sharpness=2.0).key(INPUTS) != before.key(INPUTS)
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
