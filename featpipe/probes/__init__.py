"""Probes: scikit-learn classifiers on stored features, with the grid they are chosen from."""

from __future__ import annotations

from featpipe.probes.linear import logistic_probe, svm_probe
from featpipe.probes.mapped import MappedClassifier
from featpipe.probes.neighbours import NearestMean, centroid_probe, knn_probe
from featpipe.probes.probe import Probe
from featpipe.steps.old import CentroidStep, KnnStep, LogisticStep, ProbeStep, SvmStep

__all__ = [
    "MappedClassifier",
    "NearestMean",
    "Probe",
    "centroid_probe",
    "knn_probe",
    "logistic_probe",
    "probe_of",
    "svm_probe",
]


def probe_of(step: ProbeStep) -> Probe:
    """Return the probe that a step describes."""
    match step:
        case SvmStep():
            return svm_probe(step.c, max_iter=step.max_iter, seed=step.seed)
        case LogisticStep():
            return logistic_probe(step.c, max_iter=step.max_iter)
        case KnnStep():
            return knn_probe(step.k)
        case CentroidStep():
            return centroid_probe()
    raise TypeError(f"{type(step).__name__} describes no probe")
