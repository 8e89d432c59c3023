"""The step that embeds a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featpipe.steps.base import Step, option


@dataclass(frozen=True, kw_only=True)
class ExtractStep(Step):
    """Embed the images of a dataset with a frozen backbone into a feature store."""

    kind = "extract"
    summary = "Embed a dataset with a frozen backbone into a feature store."
    runner = "featpipe.extract:run_extract"
    examples = (
        "featpipe extract --model resnet50 --dataset stl10",
        "featpipe extract --model resnet18 --weights resnet18.safetensors --dataset folder:photos",
        "featpipe extract --model glyphnet --dataset digits",
    )

    model: str = option(help="Backbone to use.", registry="featpipe.backbones:MODELS")
    dataset: str = option(
        help="Dataset: a name, folder:PATH, csv:PATH or npz:PATH.",
        registry="featpipe.datasets:DATASETS",
    )
    split: tuple[str, ...] | None = option(
        None, help="Splits to embed; default: every labelled split of the dataset."
    )
    weights: str = option("DEFAULT", help="DEFAULT, the name of published weights, or a file.")
    layer: tuple[str, ...] | None = option(
        None, help="Layers whose activations are the features; default: the last pooling."
    )
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
    dtype: str = option(
        "float32", help="Precision of the stored features.", choices=("float32", "float16")
    )
    batch_size: int | None = option(
        None, help="Images per forward pass; auto or left out: chosen for the device.", minimum=1
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:1 or mps.")
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
        0, help="Seed of splits that the dataset itself leaves open.", minimum=0
    )
    on_error: str = option(
        "fail",
        help="What to do with an image that cannot be read.",
        choices=("fail", "skip"),
    )
    workers: int | None = option(
        None, help="Threads that read images; default: one per core.", minimum=1
    )
    download: bool = option(True, help="Fetch what is missing where there is a network.")
