"""The step that embeds a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from featpipe.steps.images import ImageStep
from featpipe.steps.oldbase import option


@dataclass(frozen=True, kw_only=True)
class ExtractStep(ImageStep):
    """Embed the images of a dataset with a frozen backbone into a feature store."""

    kind = "extract"
    summary = "Embed a dataset with a frozen backbone into a feature store."
    runner = "featpipe.extract:run_extract"
    examples = (
        "featpipe extract --model resnet50 --dataset stl10",
        "featpipe extract --model resnet18 --weights resnet18.safetensors --dataset folder:photos",
        "featpipe extract --model glyphnet --dataset digits",
    )

    layer: tuple[str, ...] | None = option(
        None, help="Layers whose activations are the features; default: the last pooling."
    )
    dtype: str = option(
        "float32", help="Precision of the stored features.", choices=("float32", "float16")
    )
    batch_size: int | None = option(
        None, help="Images per forward pass; auto or left out: chosen for the device.", minimum=1
    )
