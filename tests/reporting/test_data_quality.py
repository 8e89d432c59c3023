"""What the page says of leaks and of an audit."""

from __future__ import annotations

import pandas as pd

from featpipe.audit.record import audit_stores
from featpipe.audit.step import AuditStep
from featpipe.evaluation.leaks import note_of_repeats
from featpipe.probes.nearest_mean import Centroid
from featpipe.reporting.data import ReportData
from featpipe.reporting.data_quality import DataQuality
from featpipe.reporting.page import build_report
from featpipe.reporting.step import Report
from featpipe.steps import Context
from tests.evaluation.methods import context, evaluate
from tests.images import pictures
from tests.looks import seen, vectors
from tests.reporting.conftest import Page, Plan, make_world


def test_leaks_are_on_the_page_without_an_audit(leaky):
    where, _, results = leaky
    html = DataQuality().content(ReportData.load(results, Report(), where)).html
    assert "5 of 30 test images (16.7 %) are exact copies of training images" in html
    assert "featpipe audit --dataset toy" in html


def test_leaks_are_reported_once_and_methods_named_only_if_they_differ(leaky, tmp_path):
    where, _, results = leaky
    text = Page(build_report(results, tmp_path / "same", Report(), where)).text
    first, _, rest = text.partition("How sure?")
    said = "5 of 30 test images (16.7 %) are exact copies of training images"
    assert first.count(said) == 1, "before any number"
    assert "--leaks drop leaves them out" in first
    assert rest.count(said) == 1, "in The data"
    drawer = rest.partition("Accuracy without suspected images")[2]
    assert all(title in drawer for title in titles(results))
    results[0].extra["leaks"] |= {"leaked": 7}
    text = Page(build_report(results, tmp_path / "other", Report(), where)).text
    assert f"For {results[0].title}, 7 of 30 test images (23.3 %) are exact copies of" in text
    results[0].extra["leaks"] = None
    html = DataQuality().content(ReportData.load(results, Report(), where)).html
    assert "could not be checked" in html


def test_repeats_are_reported_once_and_notes_of_a_method_are_its_own(leaky, tmp_path):
    where, _, results = leaky
    mine = "These training images, too, were chosen automatically; so was each of their split."
    for result in results:
        result.extra["leaks"] |= {"repeated": 2, "conflicting": 0}
        result.notes += [note_of_repeats(result.extra["leaks"]), mine]
    text = Page(build_report(results, tmp_path / "r", Report(), where)).text
    assert text.count("2 images are exact copies of another in the same split") == 1
    assert text.count(mine) == len(results)


def titles(results):
    return [result.title for result in results]


def test_an_audit_of_the_same_images_is_shown(leaky, tmp_path):
    where, stores, results = leaky
    audit_stores(AuditStep(), stores, where)
    data = ReportData.load(results, Report(gallery=3), where)
    content = DataQuality().content(data)
    assert "5 found, the first 3 shown" in content.html
    assert set(content.tables["audit"].issue) >= {"identical", "near-duplicate"}
    page = build_report(results, tmp_path / "page", Report(), where)
    assert (page.parent / "page-tables" / "audit.csv").is_file()
    none = DataQuality().content(ReportData.load(results, Report(gallery=0), where)).html
    assert "5 found<" in none


def test_images_of_findings_are_those_of_the_other_galleries(tmp_path):
    world = make_world(tmp_path, Plan(n_train=40, n_test=40))
    where = Context(world.workspace)
    result = world.evaluate(Centroid(), "centroid")
    listed = audit_stores(AuditStep(), list(world.stores), where).paths[1]
    findings = pd.read_csv(listed)
    misclassified = ReportData.load([result], Report(), where).methods[0].wrong
    assert {*findings["id"].astype(str)} & {*map(str, misclassified)}
    page = Page(build_report([result], tmp_path / "r", Report(), where))
    assert "no image" not in page.text
    embedded = [attrs["href"] for tag, attrs in page.elements if tag == "image"]
    assert len(embedded) == len(set(embedded)), "each is embedded once"


def test_everything_is_escaped(tmp_path):
    where = context(tmp_path)
    hostile = ("<script>alert(1)</script>", "b", "c")
    images, features = list(pictures(60, 32)), vectors(60, 0)
    images[3], features[3] = images[0], features[0]
    more = {"dims": 40, "classes": hostile}
    store = seen(tmp_path / "a.h5", images, arrays={"avgpool": features}, **more)
    result = evaluate(Centroid(), store, None, where, tmp_path / "data/results/c.json")
    audit_stores(AuditStep(), [store], where)
    html = DataQuality().content(ReportData.load([result], Report(), where)).html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
