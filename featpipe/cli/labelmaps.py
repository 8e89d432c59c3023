"""``featpipe labelmap``: show and check label maps."""

from __future__ import annotations

from typing import Any

import click

from featpipe.cli.session import Session, with_session
from featpipe.steps.old import Outcome


@click.group(help="Show and check label maps.")
def labelmap() -> None:
    """Group of the label-map commands."""


def command(_: str) -> click.Command:
    """Return the group."""
    return labelmap


@labelmap.command(epilog="Example: featpipe labelmap show imagenet_to_stl10 --target cat")
@click.argument("name", required=False)
@click.option("--target", help="Only source classes of this target ('other' too).")
@with_session
def show(session: Session, name: str | None, target: str | None) -> None:
    """List the built-in maps, or the rows of one map (a name or a CSV file)."""
    from featpipe.labelmap import LabelMap, builtin_names, summary  # noqa: PLC0415 - --help is fast

    if name is None:
        rows = [
            {
                "name": each,
                "source classes": (found := summary(LabelMap.load(each))).n_source,
                "other": found.n_other,
                "without source": ", ".join(found.without_source),
            }
            for each in builtin_names()
        ]
        session.finish(Outcome("done", "", table=rows))
    label_map = LabelMap.load(name)
    rows = [
        {"id": row.source_id, "source": row.source_name, "target": row.target, "why": row.why}
        for row in label_map.rows
        if target in (None, row.target)
    ]
    session.finish(Outcome("done", "" if rows else f"no source class is {target!r}", table=rows))


@labelmap.command(epilog="Example: featpipe labelmap check my_map.csv")
@click.argument("name")
@with_session
def check(session: Session, name: str) -> None:
    """Check that a map is complete and unambiguous; say what maps to each target."""
    from featpipe.labelmap import check as check_map  # noqa: PLC0415 - --help is fast

    found = check_map(name)
    rows: list[dict[str, Any]] = [
        {"target": target, "source classes": len(names), "which": ", ".join(names)}
        for target, names in found.source_names.items()
    ]
    rows.append({"target": "other", "source classes": found.n_other, "which": ""})
    gaps = f"; without source: {', '.join(found.without_source)}" if found.without_source else ""
    message = f"{found.name}: {found.n_source} source classes, each mapped once{gaps}"
    session.finish(Outcome("done", message, table=rows))
