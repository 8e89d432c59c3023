"""The images that a head is trained and tested on; known without torch, for plans."""

from __future__ import annotations

from featpipe.datasets.dataset import SourceRequest, splits_of
from featpipe.datasets.source import ImageSource
from featpipe.errors import UsageError
from featpipe.steps import Context, FinetuneStep


def open_images(step: FinetuneStep, context: Context, *, download: bool) -> list[ImageSource]:
    """Return the images of the training split and, where the protocol tests one, the test split.

    Raises
    ------
    UsageError
        If the dataset has more than two splits and none are chosen.
    DataError
        If the images are not there.
    """
    request = SourceRequest.of(step)
    options = request.options(context, download=download)
    splits = step.split or splits_of(step.dataset, options)
    if len(splits) > 2:
        raise UsageError(
            "Fine-tuning takes one training split and one test split.",
            got=", ".join(splits),
            next_step=f"--split {splits[0]},{'test' if 'test' in splits else splits[1]}",
        )
    alone = step.protocol.partition(":")[0] in ("kfold", "holdout")
    return [request.open(name, options) for name in splits[: 1 if alone else 2]]
