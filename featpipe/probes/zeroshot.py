"""The backbone's own classifier on the dataset's classes; nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featpipe.probes.base import Evaluation, evaluation
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

    @property
    def label(self) -> str:
        """Name and policy."""
        return f"{self.name}-{self.policy}"

    @property
    def default_title(self) -> str:
        """The title includes the policy, and the label map if one is named."""
        named = "" if self.map is None else f", {Path(self.map).stem}"
        return f"Mapped classifier ({self.policy}{named})"

    def resolved(self, splits: list[Any]) -> dict[str, Any]:
        """Add the content of the label map."""
        label_map = evaluation.load_map(self, splits[0].test.store)
        return {**super().resolved(splits), "map": label_map.fingerprint}

    def answer(self, splits: list[Any], context: Any) -> Any:
        """Map the stored logits of the test rows."""
        return evaluation.map_logits(self, splits)
