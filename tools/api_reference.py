"""Write docs/api.md: every public name with its signature and its docstring.

    python tools/api_reference.py          # write it
    python tools/api_reference.py --check  # exit 1 if it is not what would be written

What is public is what ``__all__`` says: that of ``featpipe``, or else of ``featpipe.api``.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "docs" / "api.md"
_HEADING = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_OBJECT = re.compile(r"<[^<>]+ object[^<>]*>")  # a default that has no code of its own
_WIDE = 90


def public_module() -> ModuleType:
    """Return the module whose ``__all__`` is the public interface."""
    package = importlib.import_module("featpipe")
    return package if hasattr(package, "__all__") else importlib.import_module("featpipe.api")


def reference(module: ModuleType) -> str:
    """Return the page for a module."""
    parts = [
        "# Python API\n",
        f"Everything below is importable from `{module.__name__}`. Written by "
        "`python tools/api_reference.py` from the docstrings; do not edit it by hand.\n",
    ]
    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Data": []}
    for name in sorted(module.__all__, key=str.lower):
        value = getattr(module, name)
        kind = "Functions" if inspect.isroutine(value) else "Data"
        kinds["Classes" if inspect.isclass(value) else kind].append(entry(name, value))
    for kind, entries in kinds.items():
        parts += [f"## {kind}\n", *entries] if entries else []
    return "\n".join(parts).rstrip() + "\n"


def entry(name: str, value: Any) -> str:
    """Return the part of one name: heading, signature, docstring."""
    parts = [f"### {name}\n"]
    if inspect.isroutine(value) or inspect.isclass(value):
        parts.append(f"```python\n{signature(name, value)}\n```\n")
        doc = inspect.getdoc(value)
    else:  # of an object, its class says what it is
        own = type(value).__module__.partition(".")[0] == "featpipe"
        doc = (inspect.getdoc(type(value)) or "").partition("\n\n")[0] if own else None
    return "\n".join([*parts, markdown(doc) if doc else "", ""])


class _Plain(str):
    """An annotation that is written without quotes."""

    __repr__ = str.__str__


def signature(name: str, value: Any) -> str:
    """Return the call as code, a parameter a line where it is long."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return f"{name}(…)"
    shown: list[str] = []
    for one in found.parameters.values():
        plain = one.replace(annotation=_plain(one.annotation))
        if one.kind is one.KEYWORD_ONLY and "*" not in "".join(shown):
            shown.append("*")
        shown.append(_OBJECT.sub("…", str(plain)))
    ends = found.return_annotation
    result = "" if ends is found.empty else f" -> {ends}"
    line = f"{name}({', '.join(shown)}){result}"
    if len(line) > _WIDE:
        body = "".join(f"    {parameter},\n" for parameter in shown)
        line = f"{name}(\n{body}){result}"
    return line


def _plain(annotation: Any) -> Any:
    return _Plain(annotation) if isinstance(annotation, str) else annotation


def markdown(doc: str) -> str:
    """Return a numpydoc docstring as Markdown: its sections, lists of parameters, examples."""
    title, *sections = _HEADING.split(_ROLE.sub(r"`\1`", doc).replace("``", "`"))
    parts = [title.strip()]
    for heading, text in zip(sections[::2], sections[1::2], strict=True):
        body = text.strip("\n")
        if heading == "Examples":
            body = f"```pycon\n{body.strip()}\n```"
        elif heading != "Notes":
            body = re.sub(r"^(\S.*?)(?: : (.+))?$", _named, body, flags=re.MULTILINE)
            body = re.sub(r"^    ", "  ", body, flags=re.MULTILINE)
        parts.append(f"**{heading}**\n\n{body}")
    return "\n\n".join(parts)


def _named(match: re.Match[str]) -> str:
    name, kind = match.groups()
    return f"- `{name}`" + (f": {kind}" if kind else "")


def main() -> int:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    given = parser.parse_args()
    text = reference(public_module())
    if given.check:
        return int(not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
