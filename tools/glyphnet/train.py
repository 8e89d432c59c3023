"""Train the embedded backbone ``glyphnet`` on drawn glyphs and write its weights.

    python tools/glyphnet/train.py

Everything is drawn from one seed. scikit-learn's handwritten digits, which the demo embeds with
the trained network, play no part here: neither images nor labels.
"""

from __future__ import annotations

import argparse
import json
import string
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from drawing import draw
from featpipe.backbones import GLYPHNET, MODELS
from glyphs import CLASSES, GlyphBank, printed, written

ARCHITECTURE = MODELS.get("glyphnet")
PREPROCESSING = ARCHITECTURE.file_preprocessing
BATCH = 256
PEAK_LEARNING_RATE = 0.3
SHARE_BY_HAND = 0.6  # of the training glyphs, against print
COPIES_BY_HAND = 240  # handwritten glyphs in the bank for each class
REPORT_EVERY = 50


def main(arguments: list[str] | None = None) -> None:
    """Train, validate on the fonts held out, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=1500, help=f"batches of {BATCH}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=GLYPHNET)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    print_, hand = printed(), written(COPIES_BY_HAND, np.random.default_rng(options.seed))
    weights = torch.cat(
        [
            (1 - SHARE_BY_HAND) * row_weights(print_.labels),
            SHARE_BY_HAND * row_weights(hand.labels),
        ]
    )
    network = ARCHITECTURE.build(len(CLASSES))
    random = torch.Generator().manual_seed(options.seed)
    train(network, print_ + hand, weights, options.steps, random)
    halve(network)
    facts: dict[str, float] = {"steps": options.steps, "batch": BATCH, "seed": options.seed}
    found = validate(network, printed(held_out=True), torch.Generator().manual_seed(1))
    facts |= {f"held_out_fonts_{measure}": value for measure, value in found.items()}
    print(json.dumps(facts))
    metadata = {"classes": CLASSES, "training": json.dumps(facts)}
    state = {name: _half(value) for name, value in network.state_dict().items()}
    save_file(state, options.out, metadata=metadata)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")


def train(
    network: nn.Module, bank: GlyphBank, weights: Tensor, steps: int, random: torch.Generator
) -> list[float]:
    """Train in place and return the losses: SGD, Nesterov momentum, one cycle (Smith 2018)."""
    # What keeps its sign and scale is not decayed: biases and batch norm's parameters.
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=PEAK_LEARNING_RATE, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.2
    )
    normalise = PREPROCESSING.normalise
    network.train().to(memory_format=torch.channels_last)
    began = time.monotonic()
    losses: list[float] = []
    for step in range(1, steps + 1):
        rows = torch.multinomial(weights, BATCH, replacement=True, generator=random)
        images = normalise(draw(bank, rows, random)).to(memory_format=torch.channels_last)
        loss = functional.cross_entropy(network(images), bank.labels[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % REPORT_EVERY == 0:
            recent = np.mean(losses[-REPORT_EVERY:])
            print(f"{step}/{steps} loss {recent:.3f} {time.monotonic() - began:.0f} s", flush=True)
    network.eval()
    return losses


def row_weights(labels: Tensor) -> Tensor:
    """Return how often each glyph of a bank is drawn.

    Digits are drawn as often as letters (half of all, though 10 of 62 classes); within each
    half every class as often as every other.
    """
    digit = labels < len(string.digits)
    share = torch.where(digit, 0.5 / 10, 0.5 / 52)
    return share / torch.bincount(labels, minlength=len(CLASSES))[labels]


def halve(network: nn.Module) -> None:
    """Round all weights to float16, as they are shipped, so that what is validated is shipped."""
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(_half(value))


def _half(value: Tensor) -> Tensor:
    return value.half().contiguous() if value.is_floating_point() else value


def validate(
    network: nn.Module, bank: GlyphBank, random: torch.Generator, rounds: int = 10
) -> dict[str, float]:
    """Return the accuracy on drawn glyphs, all 62 classes and with upper and lower case as one."""
    lower = torch.tensor([CLASSES.index(glyph.lower()) for glyph in CLASSES])
    rows = torch.arange(len(bank)).repeat(rounds)
    exact, folded = [], []
    with torch.inference_mode():
        for part in torch.split(rows, BATCH):
            # The sides of the pictures follow the order of a batch: shuffle it.
            part = part[torch.randperm(len(part), generator=random)]  # noqa: PLW2901
            images = PREPROCESSING.normalise(draw(bank, part, random))
            truth, guess = bank.labels[part], network(images).argmax(1)
            exact.append(truth == guess)
            folded.append(lower[truth] == lower[guess])
    return {
        "accuracy": round(torch.cat(exact).double().mean().item(), 4),
        "accuracy_without_case": round(torch.cat(folded).double().mean().item(), 4),
    }


if __name__ == "__main__":
    main()
