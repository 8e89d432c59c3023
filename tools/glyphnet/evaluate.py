"""Measure the shipped ``glyphnet`` on scikit-learn's handwritten digits, which it never saw.

python tools/glyphnet/evaluate.py
"""

from __future__ import annotations

from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featpipe.api import extract
from featpipe.labelmap import LabelMap
from train import row_weights


def main() -> None:
    """Print the accuracies that ``tools/glyphnet/README.md`` records."""
    with TemporaryDirectory() as workspace:
        stores = extract("digits", "glyphnet", workspace=workspace, device="cpu")
        labels = np.concatenate([store.labels for store in stores])
        features = np.concatenate([store.features() for store in stores])
        logits = np.concatenate([store.logits for store in stores])
        rows = [int(name.rpartition("/")[2]) for store in stores for name in store.ids]
        n_train = len(stores[0])
    pixels = np.rint(load_digits().data[rows] * (255 / 16))  # as the dataset gives them
    for name, columns in (("pixels", pixels), ("glyphnet", features)):
        split, folds = svm_accuracies(columns, labels, n_train)
        spread = f"{folds.mean():.4f} (5 folds, standard deviation {folds.std(ddof=1):.4f})"
        print(f"linear SVM on {name:8}: {split:.4f} (70:30, seed 0), {spread}")
    # How much of "letters are other" rests on digits having been drawn as often as letters?
    prior = row_weights(torch.arange(62)).numpy()
    for about, values in (
        ("as trained", logits),
        ("all 62 classes equal", logits - np.log(prior)),
    ):
        for policy, accuracy in mapped_accuracies(values, labels).items():
            print(f"mapped classifier, prior {about}, {policy:10}: {accuracy:.4f}")


def svm_accuracies(
    features: NDArray[np.floating], labels: NDArray[np.int64], n_train: int
) -> tuple[float, NDArray[np.float64]]:
    """Return the accuracy of a linear SVM on the rows after the first ``n_train``, and in 5 folds.

    C stays at scikit-learn's default: nothing is chosen by the rows that are tested.
    """
    svm = make_pipeline(StandardScaler(), LinearSVC(max_iter=20_000, random_state=0))
    svm.fit(features[:n_train], labels[:n_train])
    split = svm.score(features[n_train:], labels[n_train:])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(split), cross_val_score(svm, features, labels, cv=folds)


def mapped_accuracies(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the accuracy of the 62-way classifier, letters being "other", under each policy."""
    digits = LabelMap.load("glyphs_to_digits")
    return {
        policy: float((digits.probabilities(logits, policy).argmax(axis=1) == labels).mean())
        for policy in ("restricted", "argmax", "group")
    }


if __name__ == "__main__":
    main()
