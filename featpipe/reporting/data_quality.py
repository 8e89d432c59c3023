"""The data behind the numbers: leaks, and what an audit found."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from featpipe.audit.record import fingerprints, sentences
from featpipe.fingerprint import FileHashes
from featpipe.reporting.answers import leaks, names_of
from featpipe.reporting.data import Group, ReportData, by_fact
from featpipe.reporting.images import Images, split_images
from featpipe.reporting.sections import SECTIONS, Content, Section, render
from featpipe.reporting.suspects import DUPLICATES
from featpipe.store import FeatureStore, scan_stores

_HEADINGS = {
    "identical": "Identical images",
    "near-duplicate": "Near-duplicates",
    "label": "Doubted labels",
}


@SECTIONS.register
class DataQuality(Section):
    """What is odd about the data."""

    name = "audit"
    title = "The data"

    def content(self, data: ReportData) -> Content:
        """Return what leaks and, where there is an audit, what it found."""
        parts, tables, labels = [], [], list[pd.DataFrame]()
        for group in data.groups:
            suspects, names = data.suspects(group), dict(group.methods[0].names)
            part: dict[str, Any] = {"group": group, "leaks": leaks_of(group), "suspects": suspects}
            part["repeats"] = repeats_of(group)
            part["how"] = how_to_audit(group, data.context.workspace.root)
            parts.append(part)
            if suspects.audit is None or suspects.unread:
                continue
            summary, findings = suspects.audit["summary"], suspects.findings.copy()
            columns = ["label", "likely", "partner_label"]
            findings[columns] = findings[columns].replace(names)
            part |= {
                "sentences": sentences(summary, names),
                "classes": summary["labels"].get("classes", []),
                "names": names,
                "unaudited": names_of(suspects.unaudited) if suspects.unaudited else "",
                "images": audited_images(group, suspects.audit, data),
                "findings": sorted(  # duplicates, then doubted labels, then what is odd
                    findings.groupby("issue"),
                    key=lambda part: (part[0] not in DUPLICATES, part[0] != "label", part[0]),
                ),
            }
            tables.append(findings)
            labels.append(pd.DataFrame(part["classes"]).assign(dataset=group.dataset))
        accuracies = [data.suspects(group).accuracies for group in data.groups]
        named = {"audit": tables, "audit_labels": labels, "without_suspects": accuracies}
        return Content(
            render("audit.html.j2", parts=parts, headings=_HEADINGS, limit=data.report.gallery),
            tables={name: pd.concat(frames) for name, frames in named.items() if frames},
        )


def leaks_of(group: Group) -> str:
    """Say whether test images are training images, too, pixel for pixel."""
    accounts = [m.result.extra["leaks"] for m in group.methods if "leaks" in m.result.extra]
    if not accounts:
        return "Nothing was trained, so no test image can leak."
    if None in accounts:
        return (
            "Whether test images are training images, too, could not be checked: the features were "
            "stored without digests of the images' pixels. To check it, delete the stores and "
            "extract the dataset again."
        )
    clean = "No image that these methods were tested on is an exact copy of one that trained them."
    return " ".join(leaks(group)) or clean


def how_to_audit(group: Group, workspace: Path) -> str:
    """Return the arguments of an audit of a group's images: their dataset, or stores of several."""
    stores = group.methods[0].result.stores
    if len({store["manifest"]["dataset"]["name"] for store in stores}) < 2:
        return f"--dataset {shlex.quote(group.dataset)}"
    paths = [Path(store["path"]) for store in stores]
    inside = [p.relative_to(workspace) if p.is_relative_to(workspace) else p for p in paths]
    # Absolute paths do not belong on a page: a store outside the workspace is listed by name.
    return " ".join(shlex.quote(p.name if p.is_absolute() else str(p)) for p in inside)


def repeats_of(group: Group) -> list[str]:
    """Say which images repeat within a split, naming methods where they differ."""
    notes = by_fact((m for m in group.methods if m.repeats), lambda method: method.repeats)
    if len(notes) == 1:
        return [*notes]
    return [f"For {names_of(methods)}: {text}" for text, methods in notes.items()]


def audited_images(
    group: Group, audit: dict[str, Any], data: ReportData
) -> dict[tuple[str, str], Images]:
    """Return the images of each dataset and split of a group, and of others that were audited."""
    first, workspace = group.methods[0], data.context.workspace
    found: dict[tuple[str, str], Images] = {}

    def add(dataset: dict[str, Any], run: Any, store: Callable[[], FeatureStore]) -> None:
        key = dataset["name"], dataset["split"]
        if key not in found and (images := split_images(dataset, run, store, data)):
            found[key] = images

    for known in first.result.stores:
        add(known["manifest"]["dataset"], known["run"], partial(data.store, first, known))
    if {(one["name"], one["split"]) for one in audit["images"]} - found.keys():
        for store in scan_stores(workspace.features, FileHashes(workspace.hashes))[0]:
            if store.manifest["dataset"]["fingerprint"] in fingerprints(audit):
                add(store.manifest["dataset"], store.run, partial(FeatureStore, store.path))
    return found
