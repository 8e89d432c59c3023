"""The step ``audit``: its options, and the files that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from featpipe.lazy import Lazy
from featpipe.probes.base import OnFeatures
from featpipe.steps import STEPS, Context, Outcome, Status, option

record = Lazy("featpipe.audit.record")  # brings scikit-learn


@STEPS.register
class AuditStep(OnFeatures):
    """Find duplicates, leaks, doubtful labels and odd images in embedded datasets."""

    name = "audit"
    revision = 3  # 1: no bounds of shares; 2: labels doubted by a logistic probe
    examples = ("featpipe audit", "featpipe audit --dataset stl10 --model resnet50")
    makes = ("audit",)
    takes_unlabelled = True

    stores: tuple[Path, ...] | None = option(
        None,
        help="Stores of the splits of one dataset, or of a training and a test dataset, the "
        "training images first; default: the only ones that fit.",
        selects_input=True,
        positional=True,
    )

    def has_inputs(self) -> bool:
        """Whether stores are named."""
        return self.stores is not None

    def bind(self, inputs: Sequence[Sequence[Path]]) -> Self:
        """Take the stores of one extraction."""
        return self.replace(stores=tuple(inputs[0])) if inputs else self

    def status(self, context: Context) -> Status:
        """Look for the audit of these stores."""
        path, existing = record.look_up(self, record.open_stores(self, context), context)
        key = path.stem.rpartition("-")[2]
        if existing is None or self.force:
            return Status(False, "--force" if self.force else "no such audit yet", key)
        return Status(True, "audit is there", key, (path, path.with_suffix(".csv")))

    def run(self, context: Context) -> Outcome:
        """Audit the stores unless there is an audit of them."""
        return record.audit_stores(self, record.open_stores(self, context), context)
