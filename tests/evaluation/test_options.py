"""Options of rows: what they make of a result's key, and lists that are not there."""

from __future__ import annotations

import pytest

from featpipe.errors import DataError
from featpipe.evaluation.run import set_up
from featpipe.probes.nearest_mean import Centroid
from featpipe.probes.svm import Svm
from featpipe.probes.zeroshot import Zeroshot
from tests.images import pictures
from tests.looks import seen


def test_the_content_of_a_list_is_part_of_the_key_and_not_its_place(tmp_path, leaky):
    one, same, other = (tmp_path / f"{name}.csv" for name in "abc")
    for path, row in ((one, 3), (same, 3), (other, 4)):
        path.write_text(f"id\ntrain/{row}.png\n")
    keys = [set_up(Svm(drop=path), *leaky).key for path in (one, same, other)]
    assert keys[0] == keys[1] != keys[2]


def test_only_dropping_changes_the_key(tmp_path, leaky):
    images = list(pictures(60, 16, seed=9))
    clean = (
        seen(tmp_path / "clean.h5", images[:40]),
        seen(tmp_path / "clean test.h5", images[40:], split="test"),
    )
    keys = [set_up(Centroid(leaks=policy), *clean).key for policy in ("warn", "fail")]
    assert keys[0] == keys[1]
    assert set_up(Centroid(leaks="drop"), *leaky).key != set_up(Centroid(), *leaky).key


def test_only_what_trains_has_leaks_to_drop(tmp_path):
    listed = tmp_path / "mine.csv"
    listed.write_text("id\ntrain/3.png\n")
    mapped, trained = (kind(drop=listed).row_lists() for kind in (Zeroshot, Centroid))
    assert mapped.keys() == {"drop"}
    assert trained == {**mapped, "leaks": "warn"}
    assert not hasattr(Zeroshot(), "leaks")


def test_a_missing_list_is_named(tmp_path, leaky):
    (tmp_path / "nine.csv").touch()
    with pytest.raises(DataError, match="no such list") as error:
        set_up(Centroid(groups=tmp_path / "none.csv"), *leaky)
    assert "nine.csv" in str(error.value)


@pytest.mark.parametrize("option", ["drop", "groups"])
def test_a_folder_is_no_list(tmp_path, option):
    with pytest.raises(DataError, match="no such list") as error:
        Centroid(**{option: tmp_path}).row_lists()
    assert error.value.details["where"] == str(tmp_path)
