"""Tables hold what was measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featpipe.evaluation.result import Result
from featpipe.reporting.data import Method, ReportData
from featpipe.reporting.tables import confusion, dataset_card
from tests.reporting.conftest import Made, Page


def method_of(made: Made, kind: str) -> Method:
    return next(method for method in made.data().methods if method.result.method == kind)


def test_a_matrix_has_counts_shares_and_shades(made: Made) -> None:
    rows = confusion(method_of(made, "svm"))["rows"]
    counts = np.array([[count for count, _, _ in row] for row in rows])
    shares = np.array([[share for _, share, _ in row] for row in rows])
    heat = np.array([[level for _, _, level in row] for row in rows])
    assert counts.sum() == 200
    np.testing.assert_allclose(shares, counts / 50)
    assert heat.min() >= 0
    assert heat.max() <= 10
    assert ((heat > 0) == (counts > 0)).all(), "one error is visible"


def test_facts_say_what_a_number_cannot_be_read_without(made: Made, tmp_path: Path) -> None:
    def page(kind: str) -> Page:
        method = method_of(made, kind)
        return Page(made.again(tmp_path / kind, [method.result]))

    assert "toynet · c=" in page("svm").text
    folds = page("centroid").text
    assert "2 models (sd" in folds
    assert ": training images" in folds
    assert "with other training images, too" in folds
    assert "with other training images" not in page("logistic").text
    assert "split · seed 0" in page("logistic").text


def test_key_figures_are_those_the_method_has(made: Made, tmp_path: Path) -> None:
    logistic = method_of(made, "logistic")
    page = Page(made.again(tmp_path / "logistic", [logistic.result]))
    assert f"log loss {logistic.metrics['log_loss']:.4f}" in page.text
    ece = logistic.result.summary["intervals"]["ece"]
    assert f"points ({100 * ece['low']:.1f} – {100 * ece['high']:.1f})" in page.text
    f1 = logistic.result.summary["intervals"]["macro_f1"]
    assert f"{100 * f1['low']:.1f}–{100 * f1['high']:.1f}" in page.text
    assert "log loss" not in Page(made.again(tmp_path / "svm", made.results[:1])).text


def test_tables_beside_the_page_agree_with_the_results(made: Made) -> None:
    folder = made.page.with_name("toy-tables")
    counted = pd.read_csv(folder / "confusion.csv").groupby("result")["images"].sum()
    assert counted["svm"] == 200
    models = pd.read_csv(folder / "models.csv")
    for result in made.results:
        mine = models[models["result"] == result.name]
        assert mine["accuracy"].tolist() == [s["metrics"]["accuracy"] for s in result.splits]
    assert len(pd.read_csv(folder / "history.csv")) == 8
    assert set(pd.read_csv(folder / "search.csv")["result"]) >= {"svm", "logistic", "knn"}


def card_of(data: ReportData) -> dict[str, Any]:
    (group,) = data.groups
    return dataset_card(group, data.images(group), data)


def test_splits_are_called_by_their_names_on_the_card(made: Made) -> None:
    def splits(**train: str) -> list[str]:
        result = Result.load(made.results[0].path)  # type: ignore[arg-type]
        result.stores[0]["manifest"]["dataset"] |= train
        return [*card_of(made.data([result]))["splits"]]

    assert splits() == ["train", "test"]
    assert splits(split="all") == ["", "test"]
    assert splits(name="folder:photos", split="all") == ["photos", "toy test"]
    assert splits(name="folder:photos", split="small") == ["photos small", "toy test"]


def test_what_extraction_left_out_is_on_the_card(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert card_of(made.data(made.results[:1]))["left_out"] == {}
    store = SimpleNamespace(ids=["0", "broken.jpg"], skipped={1: "Not readable (OSError: x)"})
    monkeypatch.setattr(ReportData, "store", lambda *_: store)
    data = made.data(made.results[:1])
    card, (group,) = card_of(data), data.groups
    assert card["left_out"] == {"broken.jpg": "not readable"}
    shown = [name for name, _ in card["samples"]]
    assert list(dict.fromkeys(shown)) == list(group.classes)
    assert len(shown) == 12 // len(group.classes) * len(group.classes)
