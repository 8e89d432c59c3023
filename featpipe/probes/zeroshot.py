"""The backbone's own classifier on the dataset's classes; nothing is trained."""

from __future__ import annotations

from featpipe.probes.base import Evaluation
from featpipe.steps import STEPS, option

POLICIES = ("argmax", "group", "restricted")


@STEPS.register
class Zeroshot(Evaluation):
    """Map the backbone's own classifier to the dataset's classes plus 'other'."""

    name = "zeroshot"
    examples = (
        "featpipe zeroshot --policy argmax",
        "featpipe zeroshot --map my_classes.csv --policy restricted",
    )

    layer: str | None = option(
        None,
        help="Use the stores that hold this layer; their logits are the same.",
        selects_input=True,
    )
    policy: str = option(
        "argmax",
        help="argmax: the highest of all source classes, mapped; group: probabilities summed by "
        "target class, other included; restricted: among target classes only.",
        choices=POLICIES,
    )
    map: str | None = option(
        None,
        help="Label map: a built-in name or a CSV file; default: the built-in one that fits, or "
        "none where the dataset's classes are the backbone's own.",
    )
