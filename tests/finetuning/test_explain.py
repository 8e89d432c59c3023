"""Pictures beside the result: a folder for each choice of options, the result left alone."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from featpipe.errors import MissingExtraError, ResultError, UnknownNameError, UsageError
from featpipe.finetuning.explain import Explain, read_explanations
from featpipe.steps import STEPS


@pytest.fixture
def poor(finetune):
    """A network that was hardly trained and gets images wrong."""
    return finetune(unfreeze="layer3", epochs=1, lr=1e-6)


@pytest.fixture
def explain(poor):
    pytest.importorskip("captum")
    return lambda **options: Explain(result=str(poor.path), device="cpu", **options)


def test_mistakes_get_pictures_and_the_result_stays(poor, explain, context):
    before = poor.path.read_bytes()
    outcome = explain(layer="layer2", limit=3).run(context)
    assert outcome.status == "done"
    assert outcome.paths[1] == poor.path
    (explanation,) = read_explanations(poor.path)
    assert (explanation.folder, explanation.layer, explanation.strength, explanation.method) == (
        *(outcome.paths[0], "layer2", 0.5, "Grad-CAM"),
    )
    wrong = int((~poor.predictions().correct).sum())
    assert len(explanation.items) == min(3, wrong) > 0
    for item in explanation.items:
        assert item.true != item.predicted
        assert Image.open(explanation.folder / item.file).size == (32, 32)
    confidence = [item.confidence for item in explanation.items]
    assert confidence == sorted(confidence, reverse=True)
    assert poor.path.read_bytes() == before


def test_each_layer_has_its_own_pictures(poor, explain, context):
    for layer in ("layer3", "layer2"):
        explain(layer=layer).run(context)
    first, second = read_explanations(poor.path)
    assert (first.layer, second.layer) == ("layer2", "layer3")
    same = first.items[0].file
    assert (first.folder / same).read_bytes() != (second.folder / same).read_bytes()


def test_the_layer_that_is_meant_and_the_same_by_name_share_one_folder(poor, explain, context):
    assert poor.extra["map_layer"] == "layer3"
    outcome = explain().run(context)
    named = explain(layer="layer3")
    assert outcome.facts["layer"] == "layer3"
    assert named.status(context).paths == outcome.paths
    assert named.run(context).status == "up to date"
    assert explain(layer="layer2").status(context).key != named.status(context).key
    assert not explain(layer="layer2").status(context).done


def test_a_network_without_maps_has_none_to_show(poor, explain, context):
    poor.extra["map_layer"] = None
    poor.save(poor.path)
    for look in (explain().status, explain().run):
        with pytest.raises(ResultError, match="No layer of this network gives maps"):
            look(context)


def test_what_is_complete_is_not_made_again(poor, explain, context):
    step = explain()
    assert not step.status(context).done
    folder = step.run(context).paths[0]
    status = step.status(context)
    assert (status.done, status.key, status.paths) == (True, folder.name, (folder, poor.path))
    assert step.run(context).status == "up to date"
    assert explain(weights=poor.settings["weights"]).status(context).done
    assert not explain(strength=0.4).status(context).done
    next(folder.glob("*.png")).unlink()
    assert not step.status(context).done
    assert read_explanations(poor.path) == []
    assert step.run(context).status == "done"


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"layer": "l", "strength": 1, "method": "m", "items": [{"id": 1}]}'],
)
def test_a_damaged_explanation_is_none(poor, content):
    folder = poor.path.with_name(f"{poor.path.stem}.explained") / "00000000"
    folder.mkdir(parents=True)
    (folder / "explanation.json").write_bytes(content)
    assert read_explanations(poor.path) == []


def test_pictures_outside_of_the_folder_are_not_shown(poor, explain, context):
    folder = explain().run(context).paths[0]
    content = json.loads((folder / "explanation.json").read_text())
    content["items"][0]["file"] = f"../../{poor.path.name}"
    (folder / "explanation.json").write_text(json.dumps(content))
    assert read_explanations(poor.path) == []


def test_a_recipe_fills_in_the_result(poor, context):
    assert STEPS.get("explain") is Explain
    step = Explain.from_mapping({"layer": "layer2"}, bound=True)
    assert not step.has_inputs()
    assert step.bind([[poor.path]]).result == str(poor.path)
    assert step.bind([[poor.path]]).has_inputs()
    with pytest.raises(UsageError):
        Explain.from_mapping({"layer": "layer2"})


def test_a_layer_that_is_not_there_is_refused(explain, context):
    with pytest.raises(UnknownNameError, match="did you mean 'layer3'"):
        explain(layer="layr3").run(context)


def test_an_opacity_above_one_is_refused():
    with pytest.raises(UsageError, match="--strength cannot be 2"):
        Explain(result="x", strength=2)


def test_a_result_without_network_is_refused(poor, explain, context):
    poor.method = "svm"
    poor.save(poor.path)
    with pytest.raises(ResultError, match="trained by featpipe finetune"):
        explain().run(context)


def test_a_result_that_is_not_there_is_refused(poor, context):
    pytest.importorskip("captum")
    for look in (Explain(result="nothing").status, Explain(result="nothing").run):
        with pytest.raises(ResultError, match="no result"):
            look(context)
    poor.path.write_text("{")
    with pytest.raises(ResultError, match="cannot be read"):
        Explain(result=poor.name).status(context)


def test_a_part_of_a_name_is_the_latest_such_result(explain, context):
    folder = explain().run(context).paths[0]
    assert Explain(result="finetune", device="cpu").status(context).paths[0] == folder


def test_a_missing_captum_says_what_to_install(poor, context, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(MissingExtraError, match="captum"):
        Explain(result=str(poor.path)).run(context)
