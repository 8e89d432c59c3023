"""Rows of several files are those of one array, however they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featpipe.store.arrays import Extent, ShardedArray

WHOLE = np.arange(17 * 3 * 2, dtype=np.float32).reshape(17, 3, 2)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> ShardedArray:
    """The array in four files, one of which has no rows."""
    folder = tmp_path_factory.mktemp("shards")
    extents = []
    for number, (first, last) in enumerate([(0, 5), (5, 5), (5, 6), (6, 17)]):
        path, part = folder / f"{number}", WHOLE[first:last]
        path.write_bytes(b"head" * number + part.tobytes())
        extents.append(Extent(path, "float32", part.shape, 4 * number, ""))
    return ShardedArray(extents)


rows = st.one_of(
    st.integers(-17, 16),
    st.slices(17),
    st.lists(st.integers(-17, 16), max_size=20),
    st.lists(st.booleans(), min_size=17, max_size=17).map(np.array),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=rows)
def test_any_index_takes_what_numpy_takes(sharded: ShardedArray, first: object) -> None:
    index = np.array(first, int) if isinstance(first, list) else first
    np.testing.assert_array_equal(sharded[index], WHOLE[index])


@pytest.mark.parametrize("index", [(3, 1), (slice(2, 9), 0), ([4, 16], slice(None), 1), (2, 1, 0)])
def test_further_dimensions(sharded: ShardedArray, index: tuple[object, ...]) -> None:
    np.testing.assert_array_equal(sharded[index], WHOLE[index])


def test_it_is_an_array(sharded: ShardedArray) -> None:
    assert (sharded.shape, sharded.dtype, sharded.ndim, len(sharded)) == ((17, 3, 2), "f4", 3, 17)
    np.testing.assert_array_equal(np.asarray(sharded, np.float16), WHOLE.astype(np.float16))
    np.testing.assert_array_equal(np.stack(list(sharded)), WHOLE)


@pytest.mark.parametrize("index", [17, -18, [0, 17]])
def test_rows_that_are_not_there(sharded: ShardedArray, index: object) -> None:
    with pytest.raises(IndexError, match="rows 0 to 16"):
        sharded[index]


def test_a_changed_or_lost_file_is_not_intact(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcd")
    written = Extent(tmp_path / "a", "uint8", (4,), 0, "")
    extent = Extent(tmp_path / "a", "uint8", (4,), 0, written.digest())
    assert extent.is_intact()
    (tmp_path / "a").write_bytes(b"abcx")
    assert not extent.is_intact()
    (tmp_path / "a").unlink()
    assert not extent.is_intact()
