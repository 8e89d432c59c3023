"""The data behind the numbers: leaks, and what an audit found."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featpipe.audit.record import fingerprints, sentences
from featpipe.errors import FeatpipeError
from featpipe.fingerprint import FileHashes
from featpipe.reporting.answers import leaks, names_of
from featpipe.reporting.data import Group, ReportData, by_fact
from featpipe.reporting.images import Thumbnail
from featpipe.reporting.sections import SECTIONS, Content, Section, render
from featpipe.reporting.suspects import DUPLICATES
from featpipe.store import FeatureStore, scan_stores

_Read = Callable[[int], NDArray[np.uint8]]
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
            summary, images = suspects.audit["summary"], AuditedImages(group, suspects.audit, data)
            findings = suspects.findings.copy()
            columns = ["label", "likely", "partner_label"]
            findings[columns] = findings[columns].replace(names)
            part |= {
                "sentences": sentences(summary, names),
                "classes": summary["labels"].get("classes", []),
                "names": names,
                "unaudited": names_of(suspects.unaudited) if suspects.unaudited else "",
                "gallery": [
                    (issue, len(found), images.shown(found.head(data.report.gallery)))
                    for issue, found in sorted(  # duplicates, doubted labels, then what is odd
                        findings.groupby("issue"),
                        key=lambda part: (part[0] not in DUPLICATES, part[0] != "label", part[0]),
                    )
                ],
            }
            tables.append(findings)
            labels.append(pd.DataFrame(part["classes"]).assign(dataset=group.dataset))
        accuracies = [data.suspects(group).accuracies for group in data.groups]
        named = {"audit": tables, "audit_labels": labels, "without_suspects": accuracies}
        return Content(
            render("audit.html.j2", parts=parts, headings=_HEADINGS),
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
    """Return what names a group's images in the command: a dataset, or the stores of two."""
    stores = group.methods[0].result.stores
    if len({store["manifest"]["dataset"]["name"] for store in stores}) < 2:
        return f"--dataset {shlex.quote(group.dataset)}"
    paths = [Path(store["path"]) for store in stores]
    inside = [p.relative_to(workspace) if p.is_relative_to(workspace) else p for p in paths]
    # A folder of this machine is not for the page: what is elsewhere is found by its name.
    return " ".join(shlex.quote(p.name if p.is_absolute() else str(p)) for p in inside)


def repeats_of(group: Group) -> list[str]:
    """Say which images repeat within a split, once for the methods that it is said of."""
    told = by_fact((m for m in group.methods if m.repeats), lambda method: method.repeats)
    if len(told) == 1:
        return [*told]
    return [f"For {names_of(methods)}: {text}" for text, methods in told.items()]


class AuditedImages:
    """Images of all splits of a group, from the dataset or, where it is gone, from the stores."""

    def __init__(self, group: Group, audit: dict[str, Any], data: ReportData) -> None:
        self._data = data
        # Of each dataset and split the rows by id, and what reads one.
        self._splits: dict[tuple[str, str], tuple[dict[str, int], _Read]] = {}
        first, workspace = group.methods[0], data.context.workspace
        for known in first.result.stores:
            look_up = partial(data.store, first, known)
            self._open(known["manifest"]["dataset"], known["run"], look_up)
        # Splits that were audited, and are not tested:
        if {(one["name"], one["split"]) for one in audit["images"]} - self._splits.keys():
            for store in scan_stores(workspace.features, FileHashes(workspace.hashes))[0]:
                dataset = store.manifest["dataset"]
                if dataset["fingerprint"] in fingerprints(audit):
                    self._open(dataset, store.run, partial(FeatureStore, store.path))

    def _open(
        self, dataset: dict[str, Any], run: dict[str, Any], look_up: Callable[[], FeatureStore]
    ) -> None:
        """Open the images of a split, or the thumbnails that its store keeps."""
        split = dataset["split"]
        if (key := (dataset["name"], split)) in self._splits:
            return
        with suppress(FeatpipeError, OSError):
            source = self._data.source(run, split)
            if source.fingerprint == dataset["fingerprint"]:
                rows = {name: row for row, name in enumerate(source.ids)}
                self._splits[key] = rows, source.read
                return
        with suppress(FeatpipeError):
            store = look_up()
            if store.has_looks:
                rows = {name: row for row, name in enumerate(store.ids)}
                grey = store.looks("thumbnail")
                self._splits[key] = rows, lambda row: np.repeat(grey[row][..., None], 3, axis=2)

    def shown(self, findings: pd.DataFrame) -> list[dict[Any, Any]]:
        """Return findings with their thumbnails, and those of their partners."""
        rows = findings.to_dict("records")
        for row in rows:
            row["thumbnail"] = self._thumbnail(row["dataset"], row["split"], row["id"])
            partner = row["partner_dataset"], row["partner_split"], row["partner"]
            row["other"] = self._thumbnail(*partner)
        return rows

    def _thumbnail(self, dataset: str, split: str, name: str) -> Thumbnail | None:
        rows, read = self._splits.get((dataset, split), ({}, None))
        with suppress(FeatpipeError, OSError):
            if read is not None and name in rows:
                return self._data.sheet.add(f"audit {dataset}/{split}/{name}", read(rows[name]))
        return None
