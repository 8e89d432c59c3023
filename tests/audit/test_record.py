"""Audits on the disk: they come back as they were written, and say what was found."""

from __future__ import annotations

import json

import pytest

from featpipe.audit.record import audit_stores, load_audit, load_findings, sentences
from featpipe.audit.step import AuditStep
from featpipe.errors import DataError, UsageError
from featpipe.evaluation.run import set_up
from featpipe.probes.nearest_mean import Centroid
from tests.evaluation.methods import context
from tests.images import pictures
from tests.looks import seen


def test_the_findings_are_a_table_and_the_summary_is_json(workspace):
    outcome = AuditStep().run(workspace)
    path, listed = outcome.paths
    assert "exact copies of training images: 1, near-duplicates: 0." in outcome.message
    assert load_audit(path)["summary"] == json.loads(path.read_text())["summary"]
    found = load_findings(path)
    assert found.id[found.issue == "identical"].tolist() == ["train/0.png"]
    assert listed.suffix == ".csv"


def test_an_edited_list_is_kept(workspace):
    path, listed = AuditStep().run(workspace).paths
    edited = listed.read_text().replace('"drop"', '"check"')
    listed.write_text(edited)
    again = AuditStep().run(workspace)
    assert again.status == "up to date"
    assert "(edited since)" in again.message
    assert listed.read_text() == edited
    assert set(load_findings(path).suggestion) <= {"check", "keep together"}
    listed.write_text("id\n1\n")
    with pytest.raises(DataError, match="cannot be read"):
        load_findings(path)


@pytest.mark.parametrize("name", ["=1+1", "a\rb", "007", "NA", "ä,'\""])
def test_odd_names_come_back_as_they_were(tmp_path, name):
    where = context(tmp_path)
    images = list(pictures(12, 32))
    images[6] = images[0]
    store = seen(tmp_path / "a.h5", images, classes=(name, "b", "c"), dims=8)
    store.ids[6] = name
    path, listed = audit_stores(AuditStep(), [store], where).paths
    (row,) = load_findings(path).query("issue == 'identical'").to_dict("records")
    assert (row["id"], row["label"]) == (name, name)
    (split,) = set_up(Centroid(drop=listed, protocol="holdout:0.3"), store).splits
    assert 6 not in {*split.train.rows, *split.test.rows}


def test_a_training_and_a_test_dataset_are_audited_together(tmp_path, workspace):
    images = list(pictures(60, 32))[:9]
    (train,) = workspace.workspace.features.rglob("train*.h5")
    more = {"dataset": "other", "dims": 40}
    test = seen(tmp_path / "test.h5", images, split="test", **more)
    outcome = AuditStep(stores=[train, test.path]).run(workspace)
    assert "exact copies of training images: 9" in outcome.message
    found = load_findings(outcome.paths[0]).query("issue == 'identical'")
    assert {*found.dataset} == {"toy"}
    again = seen(tmp_path / "again.h5", images, dims=40)
    with pytest.raises(UsageError, match="not different splits with the same classes"):
        AuditStep(stores=[train, again.path]).run(workspace)


def test_two_datasets_with_equal_names_of_splits_and_images_are_distinguished(tmp_path):
    where, many = context(tmp_path), list(pictures(60, 32))
    ours, theirs = many[:40], [*many[40:], *many[:9]]
    first = seen(tmp_path / "ours.h5", ours, dataset="ours", split="all", dims=40)
    second = seen(tmp_path / "theirs.h5", theirs, dataset="theirs", split="all", dims=40)
    path, listed = audit_stores(AuditStep(), [first, second], where).paths
    text = "of 29 images of theirs all, exact copies of training images: 9"
    assert text in " ".join(sentences(load_audit(path)["summary"]))
    found = load_findings(path)
    assert {*found.partner_dataset[found.issue == "identical"]} == {"theirs"}
    dropped = found[found.suggestion == "drop"]
    assert len(dropped) >= 9
    assert {*dropped.dataset} == {"ours"}
    (split,) = set_up(Centroid(drop=listed), first, second).splits
    assert {*split.train.ids} == {*first.ids} - {*dropped.id}
    assert len(split.test) == 29  # theirs have the same ids, and are not what is to be dropped
