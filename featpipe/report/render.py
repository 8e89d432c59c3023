"""From data to one HTML file that needs nothing else and may fetch nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

_SCRIPTS = ("draw.js", "charts.js", "map.js", "page.js")


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill in a template; style and script are embedded and named in the page's policy.

    The policy forbids every request, and every script and style but these two: even markup that
    found a way through the escaping could not run.
    """
    style = Markup(_asset("style.css"))  # noqa: S704 - our own file
    script = Markup("\n".join(_asset(name) for name in _SCRIPTS))  # noqa: S704 - our own files
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    return page.render(values, style=style, script=script, policy=policy)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("featpipe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = _data
    return environment


def _data(value: Any) -> Markup:
    """Return JSON that is safe inside a script element: no ``<``, ``>`` or ``&`` in it."""
    return htmlsafe_json_dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _asset(name: str) -> str:
    folder = resources.files("featpipe.report").joinpath("templates")
    return folder.joinpath(name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
