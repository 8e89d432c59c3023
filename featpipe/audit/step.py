"""The step ``audit``: its options, and the files that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from featpipe.probes.base import canonical_model
from featpipe.steps import STEPS, Context, Needs, Outcome, Status, Step, option


@STEPS.register
class AuditStep(Step):
    """Find duplicates, leaks, doubtful labels and odd images in embedded datasets."""

    name = "audit"
    examples = ("featpipe audit", "featpipe audit --dataset stl10 --model resnet50")
    needs = Needs("features")
    makes = ("audit",)

    stores: tuple[Path, ...] | None = option(
        None,
        help="Stores of the splits of one dataset, the training split first; default: the only "
        "ones that fit.",
        selects_input=True,
        positional=True,
    )
    dataset: str | None = option(
        None, help="Dataset to audit; may be left out where there is only one.", selects_input=True
    )
    model: str | None = option(
        None, help="Backbone whose features are compared; likewise.", selects_input=True
    )
    layer: str | None = option(None, help="Stored layer to use; default: the first one.")
    seed: int = option(0, help="Seed of the folds that labels are checked with.", seed=True)
    force: bool = option(False, help="Audit again what is up to date.", affects_result=False)

    def has_inputs(self) -> bool:
        """Whether stores are named."""
        return self.stores is not None

    def accepts(self, producer: Step) -> bool:
        """Whether this is the dataset and the model asked for."""
        made = producer.settings()
        return self.dataset in (None, made.get("dataset")) and (
            self.model is None
            or canonical_model(self.model) == canonical_model(str(made.get("model")))
        )

    def planned(self, producer: Step) -> Self:
        """Return the step with the dataset and the model of the extraction."""
        return self.replace(**{name: getattr(producer, name) for name in ("dataset", "model")})

    def bind(self, inputs: Sequence[Sequence[Path]]) -> Self:
        """Take the stores of one extraction."""
        return self.replace(stores=tuple(inputs[0])) if inputs else self

    def status(self, context: Context) -> Status:
        """Look for the audit of these stores."""
        from featpipe.audit import record  # noqa: PLC0415 - brings scikit-learn

        path, existing = record.look_up(self, record.open_stores(self, context), context)
        key = path.stem.rpartition("-")[2]
        if existing is None or self.force:
            return Status(False, "asked for again" if self.force else "no such audit yet", key)
        return Status(True, "audit is there", key, (path, path.with_suffix(".csv")))

    def run(self, context: Context) -> Outcome:
        """Audit the stores, unless that was done."""
        from featpipe.audit import record  # noqa: PLC0415 - brings scikit-learn

        return record.run_audit(self, context)
