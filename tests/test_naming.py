"""Names of datasets in tables and paths."""

from __future__ import annotations

import pytest

from featpipe.naming import short_name, slug


@pytest.mark.parametrize(
    ("dataset", "name", "part"),
    [
        ("stl10", "stl10", "stl10"),
        ("folder:/home/me/My photos/", "folder:My photos", "folder-My-photos"),
        ("folder:/home/me/Völkel ☃", "folder:Völkel ☃", "folder-Völkel"),
        ("npz:data/../toy.npz", "npz:toy.npz", "npz-toy"),
        ("csv:a;rm -rf.csv", "csv:a;rm -rf.csv", "csv-a-rm-rf"),
    ],
)
def test_names_of_datasets(dataset: str, name: str, part: str) -> None:
    assert short_name(dataset) == name
    assert slug(dataset) == part
