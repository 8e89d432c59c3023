"""What steps that open images have in common: which images, and how the network sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featpipe.steps.oldbase import LARGEST_SEED, Step, option


@dataclass(frozen=True, kw_only=True)
class ImageStep(Step):
    """A step that opens the images of a dataset."""

    model: str = option(help="Backbone to use.", registry="featpipe.backbones:MODELS")
    dataset: str = option(
        help="Dataset: a name, folder:PATH, csv:PATH, npz:PATH or torchvision:CLASS.",
        registry="featpipe.datasets:DATASETS",
    )
    weights: str = option("DEFAULT", help="DEFAULT, the name of published weights, or a file.")
    split: tuple[str, ...] | None = option(
        None, help="Splits to use, that of the training rows first; default: every labelled one."
    )
    data: Path | None = option(
        None, help="Folder to look for the dataset in before the workspace's data/raw."
    )
    classes: str | None = option(
        None, help="Only these classes: first:50, or names separated by commas."
    )
    limit: int | None = option(
        None, help="Only N images of each split, spread evenly over the classes.", minimum=1
    )
    split_seed: int = option(
        0,
        help="Seed of splits that the dataset itself leaves open.",
        minimum=0,
        maximum=LARGEST_SEED,
    )
    download: bool = option(True, help="Fetch what is missing where there is a network.")
    image_size: int | None = option(
        None, help="Side of the network's input; default: that of the weights.", minimum=1
    )
    fit: str = option(
        "auto",
        help="crop: resize the shorter side and cut the centre, as the weights were tested; whole: "
        "squeeze the whole image; auto: crop, but no margin is cut from images that are not larger "
        "than the network's input.",
        choices=("auto", "crop", "whole"),
    )
    on_error: str = option(
        "fail",
        help="What to do with an image that cannot be read.",
        choices=("fail", "skip"),
    )
    workers: int | None = option(
        None, help="Threads that read images; default: one per core.", minimum=1
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:1 or mps.")
