"""``featpipe store``: list, describe, verify and export feature stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featpipe.cli.session import Session, with_session
from featpipe.errors import StoreError
from featpipe.steps.old import Outcome


@click.group(help="List, describe, verify and export feature stores.")
def store() -> None:
    """Group of the store commands."""


def command(_: str) -> click.Command:
    """Return the group."""
    return store


@store.command("list", epilog="Example: featpipe store list")
@with_session
def list_stores(session: Session) -> None:
    """List the sealed, unfinished and damaged stores of the workspace."""
    from featpipe.store import scan_stores  # noqa: PLC0415 - --help is fast

    folder = session.workspace.features
    stores, damaged = scan_stores(folder)
    rows: list[dict[str, Any]] = [
        {
            "dataset": found.manifest["dataset"]["name"],
            "split": found.manifest["dataset"]["split"],
            "model": found.manifest["backbone"]["model"],
            "layers": ", ".join(found.layers),
            "images": len(found),
            "MB": round(found.n_bytes / 1e6, 1),
            "state": "sealed",
            "path": str(found.path),
        }
        for found in stores
    ]
    blank = dict.fromkeys(("dataset", "split", "model", "layers", "images", "MB"))
    rows += [{**blank, "state": "damaged", "path": error.details.get("where")} for error in damaged]
    rows += [
        {**blank, "state": "unfinished", "path": str(path)}
        for path in sorted(folder.rglob("*.h5.partial"))
    ]
    message = "" if rows else f"no store in {folder}; make one: featpipe extract --help"
    session.finish(Outcome("done", message, table=rows))


@store.command(epilog="Example: featpipe store info data/features/digits/glyphnet/train-….h5")
@click.argument("path", type=click.Path(path_type=Path))
@with_session
def info(session: Session, path: Path) -> None:
    """Describe one store: what it holds and what it was made with."""
    import json  # noqa: PLC0415

    from featpipe.store import FeatureStore  # noqa: PLC0415

    found = FeatureStore(path)
    facts = {
        "path": str(found.path),
        "fingerprint": found.fingerprint,
        "images": len(found),
        "labelled": int((found.labels >= 0).sum()),
        "skipped": {found.ids[row]: reason for row, reason in found.skipped.items()},
        "classes": list(found.classes),
        "folds": len(found.folds),
        "layers": {name: list(found.features(name).shape) for name in found.layers},
        "logits": None if found.logits is None else list(found.logits.shape),
        "bytes": found.n_bytes,
        "manifest": found.manifest,
        "run": found.run,
    }
    message = "" if session.as_json else json.dumps(facts, indent=2, ensure_ascii=False)
    session.finish(Outcome("done", message, (path,), facts))


@store.command(epilog="Example: featpipe store verify data/features/digits/glyphnet/*.h5")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@with_session
def verify(session: Session, paths: tuple[Path, ...]) -> None:
    """Read stores completely and compare them with their digests; all of them by default."""
    from featpipe.store import FeatureStore  # noqa: PLC0415

    found = paths or tuple(sorted(session.workspace.features.rglob("*.h5")))
    broken = []
    for path in found:
        try:
            FeatureStore(path).verify()
        except StoreError as error:
            session.console.error(error)
            broken.append(str(path))
    message = f"{len(found) - len(broken)} of {len(found)} stores are whole"
    status = "failed" if broken else "done"
    session.finish(Outcome(status, message, found, {"damaged": broken}, 1 if broken else 0))


@store.command(epilog="Example: featpipe store export FILE.h5 features.parquet")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--layer", help="Layer to export [default: the first].")
@with_session
def export(session: Session, path: Path, target: Path, layer: str | None) -> None:
    """Write ids, labels and features as .npz, .parquet or .csv."""
    from featpipe.store import FeatureStore  # noqa: PLC0415
    from featpipe.store.export import export_store  # noqa: PLC0415

    rows = export_store(FeatureStore(path), target, layer)
    session.finish(Outcome("done", f"{rows} rows → {target}", (target,)))
