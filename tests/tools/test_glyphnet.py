"""The scripts that made the embedded backbone: they draw, train and measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train
from drawing import draw
from featpipe.backbones import MODELS
from featpipe.labelmap import SourceClasses
from glyphs import CLASSES, HELD_OUT, GlyphBank, printed, written
from strokes import skeletons, write


def test_the_classes_are_those_of_the_label_maps() -> None:
    assert SourceClasses.load("glyphs").names == tuple(CLASSES)


def test_the_evaluation_says_what_the_readme_records(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main()
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    measured = {name: float(values.split()[0]) for name, values in said.items()}
    assert measured["linear SVM on glyphnet"] > 0.985 > measured["linear SVM on pixels  "] > 0.94
    assert measured["mapped classifier, prior as trained, restricted"] > 0.93
    assert measured["mapped classifier, prior as trained, argmax    "] > 0.86
    # Letters gain what digits lose when they are no longer taken for half of all glyphs.
    assert measured["mapped classifier, prior all 62 classes equal, argmax    "] < 0.8


def test_every_glyph_has_a_skeleton_within_the_frame() -> None:
    assert set(skeletons()) == set(CLASSES)
    for ways in skeletons().values():
        points = np.concatenate([points for way in ways for _, points in way])
        assert points.min() >= 0
        assert points.max() <= 1


def test_writing_follows_the_seed() -> None:
    first, again, other = (write("g", np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert first.shape[1:] == (2, 2)


def test_drawing_follows_the_seed_and_shows_something() -> None:
    bank = written(2, np.random.default_rng(0))
    rows = torch.arange(len(bank))
    images, again = (draw(bank, rows, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(images, again)
    assert images.shape == (124, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert (images.float().std(dim=(1, 2, 3)) > 3).all()


def test_digits_are_drawn_as_often_as_letters() -> None:
    labels = torch.tensor([0, 0, 0, 9, *range(10, 62)])
    weights = train.row_weights(labels)
    assert weights[:3].sum() == pytest.approx(weights[3].item())
    assert weights[4:].sum() == pytest.approx(0.5)


def test_print_comes_from_fonts_and_the_held_out_ones_stay_out() -> None:
    pytest.importorskip("matplotlib", reason="the fonts come with it")
    validation = printed(held_out=True)
    assert len(HELD_OUT) == 3
    assert torch.bincount(validation.labels).tolist() == [6] * 62  # four, one and one face
    assert (validation.distances.float().amin(dim=(1, 2)) < -0.5).all()  # each has ink


def test_a_few_steps_of_training_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    # A fifth of the real batch, and a rate as much lower: twelve steps of the real one are chaotic.
    monkeypatch.setattr(train, "BATCH", 48)
    monkeypatch.setattr(train, "PEAK_LEARNING_RATE", 0.05)
    everything = written(1, np.random.default_rng(0))
    some = torch.isin(everything.labels, torch.tensor([CLASSES.index(g) for g in "1Mo"]))
    bank = GlyphBank(everything.distances[some], everything.labels[some], everything.reach[some])
    torch.manual_seed(0)
    network = MODELS.get("glyphnet").build(62)
    losses = train.train(network, bank, torch.ones(3), 12, torch.Generator().manual_seed(0))
    # From not knowing 62 classes (log 62 is 4.1) to knowing which three there are (log 3 is 1.1).
    assert len(losses) == 12
    assert max(losses[-2:]) < 2.5 < losses[0]
    assert not network.training
    found = train.validate(network, bank, torch.Generator().manual_seed(0), rounds=3)
    assert 0 <= found["accuracy"] <= found["accuracy_without_case"] <= 1


@pytest.mark.long
def test_the_script_trains_and_writes_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the fonts come with it")
    monkeypatch.setattr(train, "BATCH", 32)
    monkeypatch.setattr(train, "COPIES_BY_HAND", 1)
    out = tmp_path / "weights.safetensors"
    train.main(["--steps", "1", "--out", str(out)])
    state = load_file(out)
    assert state.keys() == MODELS.get("glyphnet").build(62).state_dict().keys()
    assert state["linear.weight"].shape == (62, 128)
    assert state["linear.weight"].dtype == torch.float16
