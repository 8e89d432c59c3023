"""Which test images an audit suspects, and what the accuracies are without them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from featpipe.audit.record import audit_of, audit_stores
from featpipe.audit.step import AuditStep
from featpipe.files import read_json
from featpipe.fingerprint import sealed_json, unsealed
from featpipe.probes.nearest_mean import Centroid
from featpipe.reporting.answers import alarms
from featpipe.reporting.data import ReportData
from featpipe.reporting.data_quality import DataQuality
from featpipe.reporting.page import build_report
from featpipe.reporting.step import Report
from featpipe.reporting.suspects import Suspects, who_is_best
from tests.evaluation.methods import context, evaluate
from tests.images import pictures
from tests.looks import seen, vectors
from tests.reporting.conftest import Page


def test_accuracies_without_the_suspects(leaky):
    where, stores, results = leaky
    exact = Suspects.of(ReportData.load(results, Report(), where).groups[0], where.workspace)
    assert {*exact.accuracies.images} == {30, 25}, "identical images are known without an audit"
    audit_stores(AuditStep(), stores, where)
    data = ReportData.load(results, Report(), where)
    (group,) = data.groups
    frame = data.suspects(group).accuracies
    for method in group.methods:
        rows = frame[frame.method == method.title].set_index("without")
        kept = ~np.isin(method.table.ids, [f"test/{i}.png" for i in (0, 1, 2, 3, 4, 6)])
        expected = method.table.correct[kept[method.table.row]].mean()
        what = "copies and near-duplicates of training images"
        assert rows.accuracy[what] == pytest.approx(expected)
        assert rows.images[["", what]].tolist() == [30, 24]
        assert rows.accuracy[""] == pytest.approx(method.row["accuracy"])
        assert (rows.low <= rows.accuracy).all()
        assert (rows.accuracy <= rows.high).all()
    page = build_report(results, where.workspace.root / "page", Report(), where)
    written = pd.read_csv(page.parent / "page-tables" / "without_suspects.csv")
    assert len(written) == len(frame)
    assert (page.parent / "page-tables" / "audit_labels.csv").is_file()


def suspected(results, where):
    data = ReportData.load(results, Report(), where)
    return data.suspects(data.groups[0])


def test_what_did_not_train_is_no_copy_of_a_training_image(leaky, tmp_path):
    where, stores, results = leaky
    listed = audit_stores(AuditStep(), stores, where).paths[1]
    assert len(suspected(results, where).copies) == 6
    steps = (Centroid(drop=listed), Centroid(leaks="drop"))
    dropped, unleaked = (
        evaluate(step, *stores, where, where.workspace.results / f"{n}.json")
        for n, step in enumerate(steps)
    )
    assert suspected([dropped], where).copies == set()
    assert suspected([unleaked], where).copies == {"test/6.png"}
    text = Page(build_report([dropped], tmp_path / "r", Report(), where)).text
    assert "also used for training" not in text


def test_the_advice_is_for_the_methods_that_were_trained(leaky):
    where, stores, results = leaky
    audit_stores(AuditStep(), stores, where)
    best = max(results, key=lambda result: result.summary["accuracy"]["value"])
    untrained = replace(best, title="A", extra={}, stores=best.stores[1:])
    shutil.copy(best.path.with_name(best.files["predictions"]), where.workspace.root)
    untrained.save(where.workspace.root / "untrained.json")
    data = ReportData.load([*results, untrained], Report(), where)
    (group,) = data.groups
    assert group.methods[0].title == "A"
    assert "--drop data/audits/" in alarms(group, data.suspects(group))[-1]


def test_of_a_low_shot_draw_only_what_it_trained_on_leaks(leaky):
    where, stores, _ = leaky
    audit_stores(AuditStep(), stores, where)
    path = where.workspace.results / "few.json"
    few = evaluate(Centroid(train_per_class=(1,), repeats=1), *stores, where, path)
    trained = {*few.extra["leaks"]["trained"]}
    assert len(trained) == 3
    copies = {f"test/{row}.png" for row in (0, 1, 2, 3, 4, 6) if f"train/{row}.png" in trained}
    assert suspected([few], where).copies == copies


def test_methods_with_unaudited_training_images_are_named(leaky, tmp_path):
    where, stores, results = leaky
    audit_stores(AuditStep(), stores, where)
    other = seen(tmp_path / "o.h5", list(pictures(60, 32, seed=9)), dataset="other", dims=40)
    result = evaluate(Centroid(), other, stores[1], where, where.workspace.results / "o.json")
    data = ReportData.load([*results, result], Report(), where)
    (method,) = data.suspects(data.groups[0]).unaudited
    html = DataQuality().content(data).html
    assert f"The training images of {method.title} were not audited." in html


def test_folds_leak_only_what_they_divide(tmp_path):
    where = context(tmp_path)
    images, features = list(pictures(60, 32)), vectors(60, 0)
    for row in range(0, 30, 3):  # mirrored, of the same class
        images[row + 30], features[row + 30] = images[row][:, ::-1], features[row] * 0.99
    store = seen(tmp_path / "a.h5", images, arrays={"avgpool": features}, dims=40)
    listed = audit_stores(AuditStep(), [store], where).paths[1]

    def copies(**how):
        path = where.workspace.results / f"{len(how)}.json"
        result = evaluate(Centroid(protocol="kfold:5", **how), store, None, where, path)
        return suspected([result], where), result

    divided, result = copies()
    table, fold = result.predictions(), {}
    for split, row in zip(table.split, table.row, strict=True):
        fold[table.ids[row]] = split
    pairs = [(f"train/{row}.png", f"train/{row + 30}.png") for row in range(0, 30, 3)]
    assert divided.copies == {name for a, b in pairs if fold[a] != fold[b] for name in (a, b)}
    assert copies(groups=listed)[0].copies == set()


def test_an_audit_of_other_training_images_says_nothing(leaky, tmp_path):
    where, stores, _ = leaky
    audit_stores(AuditStep(), stores, where)
    more = {"dataset": "other", "dims": 40}
    other = seen(tmp_path / "o.h5", list(pictures(60, 32, seed=9)), **more)
    result = evaluate(Centroid(), other, stores[1], where, where.workspace.results / "o.json")
    found = suspected([result], where)
    assert (found.audit, found.copies) == (None, set())
    html = DataQuality().content(ReportData.load([result], Report(), where)).html
    assert "<code>featpipe audit o.h5 b.h5</code>" in html, "relative to the workspace"


def test_the_audit_is_that_of_the_backbone_on_the_page(leaky):
    where, stores, results = leaky
    path, listed = audit_stores(AuditStep(), stores, where).paths
    model = unsealed(read_json(path))["model"]
    other = path.with_name(path.name.replace("audit", "audit-of-another"))
    newer = {**unsealed(read_json(path)), "model": "other", "created": "9999-01-01"}
    other.write_text(sealed_json(newer))
    other.with_suffix(".csv").write_bytes(listed.read_bytes())
    images = results[0].dataset["test"]["fingerprint"]
    assert audit_of(where.workspace, {images}, [model])[0] == path
    assert audit_of(where.workspace, {images}, ["another", "other", model])[0] == other
    assert audit_of(where.workspace, {images}, [])[0] == other
    assert audit_of(where.workspace, {images, "other images"}, [model]) is None
    html = DataQuality().content(ReportData.load(results, Report(), where)).html
    assert f"An audit of the features of {model}" in html


def test_whether_the_order_depends_on_suspects_is_stated():
    frame = pd.DataFrame(
        [("A", "", 0.9), ("B", "", 0.8), ("A", "copies", 0.7), ("B", "copies", 0.75)],
        columns=["method", "without", "accuracy"],
    )
    assert who_is_best(frame) == "The highest accuracy with all images: A; without copies, it is B."
    assert "does not change" in who_is_best(frame.assign(accuracy=[0.9, 0.8, 0.7, 0.6]))
    assert who_is_best(frame[frame.method == "A"]) == ""
