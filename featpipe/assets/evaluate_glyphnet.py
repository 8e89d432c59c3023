"""Measure the shipped ``glyphnet`` on scikit-learn's handwritten digits, which it never saw.

python -m featpipe.assets.evaluate_glyphnet
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featpipe.assets.train_glyphnet import row_weights
from featpipe.backbones import load_backbone
from featpipe.backbones.base import Backbone
from featpipe.datasets import DatasetOptions, open_source
from featpipe.labelmap import LabelMap
from featpipe.probes.mapped import MappedClassifier


@dataclass(frozen=True)
class EmbeddedDigits:
    """The digits, training rows first.

    Attributes
    ----------
    pixels : ndarray of shape (1797, 64), float64
    features : ndarray of shape (1797, 128), float32
    logits : ndarray of shape (1797, 62), float32
    labels : ndarray of shape (1797,), int64
    n_train : int
    """

    pixels: NDArray[np.float64]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    n_train: int


def main() -> None:
    """Print the accuracies that ``featpipe/assets/README.md`` records."""
    digits = embed_digits(load_backbone("glyphnet", device="cpu"))
    for name, features in (("pixels", digits.pixels), ("glyphnet", digits.features)):
        split, folds = svm_accuracies(features, digits.labels, digits.n_train)
        spread = f"{folds.mean():.4f} (5 folds, standard deviation {folds.std(ddof=1):.4f})"
        print(f"linear SVM on {name:8}: {split:.4f} (70:30, seed 0), {spread}")
    for prior, logits in (
        ("as trained", digits.logits),
        ("all 62 classes alike", digits.logits - np.log(training_prior())),
    ):
        for policy, accuracy in mapped_accuracies(logits, digits.labels).items():
            print(f"mapped classifier, prior {prior}, {policy:10}: {accuracy:.4f}")


def embed_digits(backbone: Backbone) -> EmbeddedDigits:
    """Embed the training and the test split (70:30, seed 0) of the dataset ``digits``."""
    splits = [open_source("digits", split, DatasetOptions(seed=0)) for split in ("train", "test")]
    images = [source.read(row) for source in splits for row in range(len(source))]
    prepared = torch.stack([backbone.preprocessing.prepare(image) for image in images])
    embedded = backbone.embed(prepared, ("avgpool", "logits"))
    return EmbeddedDigits(
        pixels=np.stack(images)[..., 0].reshape(len(images), -1).astype(np.float64),
        features=embedded["avgpool"],
        logits=embedded["logits"],
        labels=np.concatenate([source.labels for source in splits]),
        n_train=len(splits[0]),
    )


def svm_accuracies(
    features: NDArray[np.floating], labels: NDArray[np.int64], train: int
) -> tuple[float, NDArray[np.float64]]:
    """Return the accuracy of a linear SVM on the rows after the first ``train``, and in 5 folds.

    C stays at scikit-learn's default: nothing is chosen by the rows that are tested.
    """
    svm = make_pipeline(StandardScaler(), LinearSVC(max_iter=20_000, random_state=0))
    split = svm.fit(features[:train], labels[:train]).score(features[train:], labels[train:])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(split), cross_val_score(svm, features, labels, cv=folds)


def mapped_accuracies(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the accuracy of the 62-way classifier, letters being "other", under each policy."""
    columns = LabelMap.load("glyphs_to_digits").columns()
    return {
        policy: float(
            (MappedClassifier(columns, 10, policy).fit().predict(logits) == labels).mean()
        )
        for policy in ("restricted", "argmax", "group")
    }


def training_prior() -> NDArray[np.float64]:
    """Return how often each of the 62 classes was drawn in training."""
    return row_weights(torch.arange(62)).numpy().astype(np.float64)


if __name__ == "__main__":
    main()
