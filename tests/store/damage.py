"""Ways to damage a file."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

DAMAGE = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True)),
    st.tuples(st.just("longer"), st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.tuples(st.just("flip early"), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.tuples(st.just("overwrite"), st.floats(0, 1), st.binary(min_size=1, max_size=200)),
    st.tuples(st.just("zeros"), st.floats(0, 1), st.integers(1, 6000)),
)


def damage(content: bytes, how: tuple[Any, ...]) -> bytes:
    kind, where = how[0], how[1]
    if kind == "longer":
        return content + where
    place = int(where * (500 if kind == "flip early" else len(content)))
    if kind == "cut":
        return content[:place]
    if kind == "flip early":
        kind = "flip"
    if kind == "flip":
        new = bytes([content[place] ^ 1 << how[2]])
    else:
        new = how[2] if kind == "overwrite" else b"\0" * how[2]
    return (content[:place] + new + content[place + len(new) :])[: len(content)]
