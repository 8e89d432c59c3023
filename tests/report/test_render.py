"""Numbers as people read them, and nothing of the data that becomes markup."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Callable

import pytest

from featpipe.report.render import (
    count,
    environment,
    p_value,
    percent,
    points,
    render_page,
    seconds,
    size,
)


@pytest.mark.parametrize(
    ("format_", "value", "text"),
    [
        (percent, 0.8365, "83.65"),
        (points, -0.0123, "−1.23"),
        (points, 0.5, "+50.00"),
        (p_value, 0.0321, "0.032"),
        (p_value, 1e-9, "< 0.001"),
        (seconds, 0.01234, "0.0123"),
        (seconds, 75.3, "75.3"),
        (seconds, 12345.6, "12\u202f346"),
        (seconds, 0, "0"),
        (count, 20490, "20\u202f490"),
        (size, 12, "12\u00a0B"),
        (size, 164_123, "164\u00a0KB"),
        (size, 16_400_000, "16.4\u00a0MB"),
        (size, 2e9, "2\u00a0GB"),
    ],
)
def test_numbers(format_: Callable[[object], str], value: object, text: str) -> None:
    assert format_(value) == text


@pytest.mark.parametrize("format_", [percent, p_value, seconds, count, size])
def test_a_number_that_is_not_known_is_a_dash(format_: Callable[[None], str]) -> None:
    assert format_(None) == "–"


def test_data_cannot_end_its_script() -> None:
    template = environment().from_string("<script>{{ value|data }}</script>")
    text = template.render(value={"name": "</script><!-- & 'é'"})
    assert re.fullmatch(r"<script>[^<>&]*</script>", text)
    with pytest.raises(ValueError, match="Out of range"):
        template.render(value=float("nan"))


@pytest.mark.parametrize("tag", ["style", "script"])
def test_the_policy_allows_exactly_the_style_and_the_script_of_the_page(tag: str) -> None:
    text = str(render_page("index.html.j2", reports=[]))
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    assert f"{tag}-src 'sha256-{digest}';" in html.unescape(text)
