"""All steps: what a command does, what a recipe is made of."""

from __future__ import annotations

from featpipe.steps.extract import ExtractStep
from featpipe.steps.finetune import ExplainStep, FinetuneStep
from featpipe.steps.images import ImageStep
from featpipe.steps.oldbase import Context, OptionSpec, Outcome, Step, options_of
from featpipe.steps.probes import (
    CentroidStep,
    EvaluationStep,
    KnnStep,
    LogisticStep,
    ProbeStep,
    SvmStep,
    ZeroshotStep,
)
from featpipe.steps.report import CompareStep, ReportStep

STEPS: dict[str, type[Step]] = {
    step.kind: step
    for step in (
        ExtractStep,
        SvmStep,
        LogisticStep,
        KnnStep,
        CentroidStep,
        ZeroshotStep,
        FinetuneStep,
        ExplainStep,
        CompareStep,
        ReportStep,
    )
}

__all__ = [
    "STEPS",
    "CentroidStep",
    "CompareStep",
    "Context",
    "EvaluationStep",
    "ExplainStep",
    "ExtractStep",
    "FinetuneStep",
    "ImageStep",
    "KnnStep",
    "LogisticStep",
    "OptionSpec",
    "Outcome",
    "ProbeStep",
    "ReportStep",
    "Step",
    "SvmStep",
    "ZeroshotStep",
    "options_of",
]
