"""Audits on the disk: their stores, the JSON of the summary, the CSV of the findings."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from featpipe.audit.audit import COLUMNS, FEW_IMAGES, TINY, Audit
from featpipe.audit.duplicates import is_approximate
from featpipe.backbones import folder_name
from featpipe.datasets import slug
from featpipe.errors import DataError, UsageError
from featpipe.evaluation.stores import embedded_alike, select_splits
from featpipe.files import read_json
from featpipe.fingerprint import FileHashes, of_file, sealed_json, unsealed
from featpipe.provenance import environment, now
from featpipe.steps import Context, Outcome
from featpipe.store import FeatureStore
from featpipe.workspace import Workspace, atomic_write, mapped, neutralised, restore_cell

if TYPE_CHECKING:
    from featpipe.audit.step import AuditStep

AUDIT_SCHEMA = 3
_NAMES_IMAGES = ("name", "split", "fingerprint")  # of a dataset in a manifest
_NAMED = 8  # classes, and then "…"


def open_stores(step: AuditStep, context: Context) -> list[FeatureStore]:
    """Return the stores that a step names, or the only ones that fit."""
    if step.stores is None:
        return select_splits(step, context)
    hashes = FileHashes(context.workspace.hashes)
    stores = [FeatureStore(path, hashes) for path in step.stores]
    splits = {tuple(map(store.manifest["dataset"].get, ("name", "split"))) for store in stores}
    classes = {store.classes for store in stores if store.classes}
    if not embedded_alike(stores) or len(splits) < len(stores) or len(classes) > 1:
        what = "The stores are not different splits with the same classes, embedded alike."
        hint = "name stores of one model; of datasets of one name, make a CSV: path, label, split"
        raise UsageError(what, got=", ".join(str(s.path) for s in stores), next_step=hint)
    return stores


def look_up(
    step: AuditStep, stores: Sequence[FeatureStore], context: Context
) -> tuple[Path, dict[str, Any] | None]:
    """Return the path of the audit of stores, and its content if it exists and is undamaged."""
    first = stores[0]
    inputs = {
        "stores": [store.fingerprint for store in stores],
        "looks": all(store.has_looks for store in stores),
        "approximate": any(is_approximate(len(store)) for store in stores),
    }
    key = step.key(inputs, layer=step.layer or first.layers[0])
    dataset = slug(first.manifest["dataset"]["name"])
    model = folder_name(first.manifest["backbone"]["model"])
    path = context.workspace.audits / f"{dataset}-{model}-audit-{key[:8]}.json"
    return path, load_audit(path)


def load_audit(path: Path) -> dict[str, Any] | None:
    """Return an audit and whether its list was ``edited``; None if either is missing."""
    with suppress(OSError, ValueError, RecursionError, KeyError):
        content = unsealed(read_json(path))
        if content["schema"] == AUDIT_SCHEMA:
            return {**content, "edited": of_file(path.with_suffix(".csv")) != content["list"]}
    return None


def load_findings(path: Path) -> pd.DataFrame:
    """Return the findings of an audit, given the path of its JSON file."""
    listed = path.with_suffix(".csv")
    try:
        frame = pd.read_csv(listed, keep_default_na=False, dtype=str, usecols=list(COLUMNS))
        texts = {name: mapped(frame[name], restore_cell) for name in COLUMNS}
        return frame.assign(**texts).assign(score=frame["score"].astype(float))
    except (ValueError, OSError) as error:
        what, reason = "The list of an audit cannot be read.", str(error).partition("\n")[0]
        again = "undo the changes to it, or: featpipe audit --force"
        raise DataError(what, where=listed, got=reason, next_step=again) from error


def fingerprints(audit: dict[str, Any]) -> set[str]:
    """Return the fingerprints of the images that were audited, one for each split."""
    return {one["fingerprint"] for one in audit["images"]}


def audit_of(
    workspace: Workspace, images: Set[str], models: Sequence[str]
) -> tuple[Path, dict[str, Any]] | None:
    """Return the audit of the images with some fingerprints, or ``None``.

    Of several, it is the newest by the features of the first of ``models`` that has one, else the
    newest of all.
    """
    found = [(path, load_audit(path)) for path in sorted(workspace.audits.glob("*.json"))]
    fitting = [(path, one) for path, one in found if one and images <= fingerprints(one)]
    rank = {model: len(models) - position for position, model in enumerate(models)}
    return max(fitting, key=lambda p: (rank.get(p[1]["model"], 0), p[1]["created"]), default=None)


def audit_stores(step: AuditStep, stores: Sequence[FeatureStore], context: Context) -> Outcome:
    """Audit some stores unless there is an audit of them."""
    path, existing = look_up(step, stores, context)
    listed, status = path.with_suffix(".csv"), "up to date"
    if existing is None or step.force:
        status = "done"
        audit = Audit(stores, step.layer, step.seed, context.jobs, context.progress)
        datasets = [store.manifest["dataset"] for store in stores]
        with atomic_write(listed) as temporary:
            neutralised(audit.findings).to_csv(
                temporary, index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
            )
        existing = {
            "schema": AUDIT_SCHEMA,
            "created": now(),
            "command": context.command,
            "environment": environment(),
            "dataset": datasets[0]["name"],
            "model": stores[0].manifest["backbone"]["model"],
            "images": [{part: one[part] for part in _NAMES_IMAGES} for one in datasets],
            "summary": audit.summary,
            "list": of_file(listed),
        }
        with atomic_write(path) as temporary:
            temporary.write_text(sealed_json(existing), encoding="utf-8")
    summary, edited = existing["summary"], " (edited since)" * existing.get("edited", False)
    message = "\n".join([status, *sentences(summary), f"→ {listed}{edited}"])
    return Outcome(status, message, (path, listed), {"summary": summary})


def sentences(summary: dict[str, Any], called: Mapping[str, str] | None = None) -> list[str]:
    """Describe the findings, a sentence for each kind; ``called``: display names of classes."""
    known, (_, *others) = called or {}, summary["splits"]
    found, across = summary["duplicates"], summary["duplicates"]["across"]
    lines = []
    if others:
        images = _number(sum(one["images"] for one in others), "image")
        several = len({one["dataset"] for one in summary["splits"]}) > 1
        names = [f"{one['dataset']} " * several + one["split"] for one in others]
        leaks = "none is a copy or near-duplicate of a training image"
        if any(across.values()):
            copies = f"exact copies of training images: {across['identical']}"
            leaks = f"{copies}, near-duplicates: {across['near']}"
        lines.append(f"Leaks: of {images} of {' and '.join(names)}, {leaks}.")
    lines += _on_duplicates(found)
    doubts = summary["labels"]
    if "reason" in doubts:
        lines.append(f"Labels were not checked: {doubts['reason']}.")
    else:
        value, low, high = (100 * doubts["share"][part] for part in ("value", "low", "high"))
        most = ""
        if doubts["pairs"]:
            pair = doubts["pairs"][0]
            label, likely = (known.get(pair[key], pair[key]) for key in ("label", "likely"))
            most = f", most often a label {label} on what looks like {likely} ({pair['images']})"
        lines.append(
            f"Labels: about {value:.1f} % look wrong{most}"
            + "; if few are, that is too many" * (value > 0)
            + f". At least {low:.1f} % are wrong (those that the probe contradicts with "
            f"high confidence), at most {high:.1f} % (all that it contradicts, its own mistakes "
            "included)."
        )
    odd = [f"{count} {kind}" for kind, count in summary["odd"].items() if count]
    lines.append(f"Odd images: {', '.join(odd) or 'none'}.")
    for part, what in (
        ("few", f"Classes with fewer than {FEW_IMAGES} different training images"),
        ("clustered", "Classes that are mostly copies of a few images"),
        ("imbalance", "Classes of different sizes, the smallest and the largest"),
    ):
        named = [
            f"{known.get(row['label'], row['label'])} ({_number(row['images'], 'image')}"
            + (f", {row['different']} different" * (row["different"] < row["images"]) + ")")
            for row in summary["coverage"][part]
        ]
        if named:
            lines.append(f"{what}: {', '.join(named[:_NAMED])}{' …' * (len(named) > _NAMED)}.")
    if summary["approximate"]:
        lines.append("The search was approximate (faiss): a few duplicates may be missed.")
    if not summary["pixels_compared"]:
        lines.append(
            "Pixels were not compared: the stores hold no digests and thumbnails of the images. "
            "Delete them and extract the dataset again to compare them."
        )
    return lines


def _on_duplicates(found: dict[str, Any]) -> list[str]:
    """Describe duplicates that are not leaks."""
    lines = []
    for part, where in (("within", "within a split"), ("between", "between the other splits")):
        kinds = (("identical", "identical image"), ("near", "near-duplicate pair"))
        listed = ", ".join(_number(n, what) for kind, what in kinds if (n := found[part][kind]))
        if listed or part == "within":
            lines.append(f"Duplicates {where}: {listed or 'none'}.")
    if found["conflicting"]:
        lines.append(f"Identical images with different labels: {found['conflicting']}.")
    if n := found["too_small"]:
        too_small = f"Smaller than {TINY} pixels, so not checked for near-duplicates"
        lines.append(f"{too_small}: {_number(n, 'image')}.")
    if n := found["divided_by_folds"]:
        lines.append(f"Divided by the dataset's own folds: {_number(n, 'pair')}.")
    return lines


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
