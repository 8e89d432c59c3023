"""The step: nothing is done twice, and what cannot be audited is reported."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.audit.record import audit_stores
from featpipe.audit.step import AuditStep
from featpipe.errors import FeatpipeError, FitError, StoreError
from featpipe.evaluation.run import set_up
from featpipe.evaluation.stores import select_stores
from featpipe.probes.nearest_mean import Centroid
from tests.evaluation.methods import context
from tests.images import pictures
from tests.looks import seen


def test_an_audit_is_made_once(workspace):
    first = AuditStep().run(workspace)
    assert AuditStep().status(workspace).done
    again = AuditStep().run(workspace)
    assert (again.status, again.paths) == ("up to date", first.paths)
    assert AuditStep(force=True).run(workspace).status == "done"


def test_a_damaged_summary_is_made_again(workspace):
    path = AuditStep().run(workspace).paths[0]
    path.write_text(path.read_text().replace("dataset", "Dataset"))
    assert not AuditStep().status(workspace).done
    assert AuditStep().run(workspace).status == "done"


def test_what_it_suggests_can_be_dropped(workspace):
    listed = AuditStep().run(workspace).paths[1]
    step = Centroid(drop=listed)
    (split,) = set_up(step, *select_stores(step, workspace)).splits
    assert 0 not in split.train.rows
    assert 0 in split.test.rows


def test_unlabelled_images_are_audited_without_being_named(tmp_path):
    where = context(tmp_path)
    folder = where.workspace.features / "flat" / "toynet"
    folder.mkdir(parents=True)
    labels = np.full(12, -1)
    seen(folder / "all-1.h5", list(pictures(12, 32)), labels, classes=(), split="all", dims=8)
    assert "Labels were not checked" in AuditStep().run(where).message


def test_a_dataset_that_is_not_there_is_named(workspace):
    with pytest.raises(StoreError, match="No feature store fits"):
        AuditStep(dataset="digits").run(workspace)


def test_nothing_to_audit_is_an_error(tmp_path):
    where = context(tmp_path)
    with pytest.raises(FeatpipeError):
        AuditStep().run(where)
    image = np.zeros((8, 8, 3), np.uint8)
    store = seen(tmp_path / "a.h5", [image])
    store.skipped[0] = "damaged"
    with pytest.raises(FitError, match="no image to audit"):
        audit_stores(AuditStep(), [store], where)
