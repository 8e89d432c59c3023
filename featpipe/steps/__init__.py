"""Steps: what a command does, what a recipe is made of, and how recipes are planned and run.

Nothing in this package knows a kind of step; each registers itself in :data:`STEPS`.
"""

from __future__ import annotations

from featpipe.registry import Registry
from featpipe.steps.base import LEFT_OUT, Context, Needs, Outcome, Status, Step
from featpipe.steps.options import altered, option, options_of

__all__ = [
    "LEFT_OUT", "STEPS", "Context", "Needs", "Outcome", "Status", "Step", "altered", "option",
    "options_of",
]  # fmt: skip

STEPS: Registry[type[Step]] = Registry(
    "step",
    {
        "extract": "featpipe.extraction.step",
        "embed": "featpipe.extraction.step",
        "svm": "featpipe.probes.svm",
        "logistic": "featpipe.probes.logistic",
        "knn": "featpipe.probes.neighbours",
        "centroid": "featpipe.probes.nearest_mean",
        "probe": "featpipe.probes.any_classifier",
        "zeroshot": "featpipe.probes.zeroshot",
        "finetune": "featpipe.finetuning.step",
        "explain": "featpipe.finetuning.explain",
        "audit": "featpipe.audit.step",
        "compare": "featpipe.statistics.step",
        "report": "featpipe.reporting.step",
    },
)
