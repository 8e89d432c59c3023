"""Groups of images: a column of a table, the folder an image is in, or a part of its name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.datasets.selection import Subset
from featpipe.errors import DataError, UsageError
from featpipe.extraction import Extract
from featpipe.steps import Context
from featpipe.store import FeatureStore
from featpipe.workspace import Workspace


@pytest.fixture
def photos(tmp_path):
    """Two classes, two patients in each; their names are the same in both."""
    for number, name in enumerate(
        ["cat/ann/a.png", "cat/bob/b.png", "dog/ann/c.png", "dog/bob/d.png"]
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(path)
    return tmp_path / "photos"


def opened(photos, rule=None, **options):
    return open_source(f"folder:{photos}", "all", DatasetOptions(group_by=rule, **options))


@pytest.mark.parametrize(
    ("rule", "groups"),
    [
        ("folder", ("ann", "bob", "ann", "bob")),
        ("regex:/([ab])", ("a", "b", "a", "b")),
        ("regex:^...", ("cat", "cat", "dog", "dog")),
    ],
)
def test_a_rule_groups_by_id(photos, rule, groups):
    source = opened(photos, rule)
    assert (source.groups, source.grouped_by) == (groups, rule)
    part = Subset(source, [3, 0])
    assert part.groups == (groups[3], groups[0])
    assert opened(photos, rule, classes="dog").groups == groups[2:]


def test_groups_are_part_of_what_identifies_images(photos):
    plain = opened(photos).fingerprint
    assert (
        len({plain, opened(photos, "folder").fingerprint, opened(photos, "regex:.").fingerprint})
        == 3
    )


@pytest.mark.parametrize("rule", ["patient", "regex:", "regex:(", "folder:x"])
def test_invalid_rules_are_refused(rule):
    with pytest.raises(UsageError, match=r"is not a grouping rule|not a valid regular expression"):
        Extract(model="glyphnet", dataset="digits", group_by=rule)


def test_an_image_without_a_group_is_named(photos):
    with pytest.raises(DataError, match="2 images have no group") as caught:
        opened(photos, "regex:cat/(.+)/")
    assert caught.value.details["got"] == "dog/ann/c.png"


def test_a_table_may_have_a_column_of_groups(photos):
    table = photos / "list.csv"
    lines = ["path,label,group", "cat/ann/a.png,cat,ann", "cat/bob/b.png,cat,bob"]
    table.write_text("\n".join(lines))
    source = open_source(f"csv:{table}", "all", DatasetOptions())
    assert (source.groups, source.grouped_by) == (("ann", "bob"), "the column group")
    table.write_text("\n".join([*lines, "dog/ann/c.png,dog,"]))
    with pytest.raises(DataError, match="not complete"):
        open_source(f"csv:{table}", "all", DatasetOptions())


def test_stores_keep_groups_and_those_without_are_as_before(photos, tmp_path):
    context = Context(Workspace(tmp_path / "work"))
    values = {"model": "glyphnet", "dataset": f"folder:{photos}", "device": "cpu"}
    stores = [
        FeatureStore(Extract(**values, group_by=rule).run(context).paths[0])
        for rule in ("folder", None)
    ]
    assert [store.groups for store in stores] == [["ann", "bob", "ann", "bob"], []]
    assert [store.manifest["dataset"].get("grouped_by") for store in stores] == ["folder", None]
    assert np.array_equal(stores[0].features(), stores[1].features())
    assert Extract(**values, group_by="folder").run(context).status == "up to date"
