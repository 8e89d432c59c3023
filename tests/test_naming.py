"""Names of datasets as tables show them."""

from __future__ import annotations

import pytest

from featpipe.naming import short_name


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("stl10", "stl10"),
        ("folder:/home/me/My photos/", "folder:My photos"),
        ("folder:/home/me/Völkel ☃", "folder:Völkel ☃"),
        ("npz:data/../toy.npz", "npz:toy.npz"),
        ("csv:a;rm -rf.csv", "csv:a;rm -rf.csv"),
    ],
)
def test_the_folder_is_left_out(dataset: str, name: str) -> None:
    assert short_name(dataset) == name
