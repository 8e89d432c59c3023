"""The data behind the numbers: leaks, what an audit found, and accuracies without the suspects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featpipe.audit.record import audit_of, load_findings, sentences
from featpipe.errors import DataError, FeatpipeError
from featpipe.reporting.answers import leaks
from featpipe.reporting.data import Group, Method, ReportData, Thumbnail, find_store
from featpipe.reporting.sections import SECTIONS, Content, Section, render
from featpipe.statistics.intervals import accuracy_interval
from featpipe.store import FeatureStore

_DUPLICATES = ("identical", "near-duplicate")


@SECTIONS.register
class DataQuality(Section):
    """What is odd about the data, and whether the comparison depends on it."""

    name = "audit"
    title = "The data"

    def content(self, data: ReportData) -> Content:
        """Return what leaks and, where there is an audit, what it found."""
        parts, tables = [], []
        for group in data.groups:
            first = group.methods[0]
            part: dict[str, Any] = {"group": group, "leaks": leaks_of(group)}
            repeats = dict.fromkeys(filter(None, (method.repeats for method in group.methods)))
            part |= {"audit": None, "unread": "", "repeats": list(repeats)}
            parts.append(part)
            tested = first.result.dataset["test"]
            if (known := _audit_of(group, data)) is None:
                continue
            path, audit = known
            try:
                findings = load_findings(path)
            except DataError as error:  # it was edited
                part["unread"] = str(error)
                continue
            for column in ("label", "likely"):
                findings[column] = findings[column].replace(dict(first.names))
            tables.append(findings)
            images = AuditedImages(group, data)
            part |= {
                "audit": audit,
                "sentences": sentences(audit["summary"], first.names),
                "without": without_suspects(group, findings, tested["split"]),
                "gallery": [
                    (issue, len(found), images.shown(found.head(data.report.gallery)))
                    for issue, found in sorted(findings.groupby("issue"), key=_importance)
                ],
            }
        html = render("audit.html.j2", parts=parts)
        return Content(html, tables={"audit": pd.concat(tables)} if tables else {})


def _importance(issue: tuple[Any, pd.DataFrame]) -> tuple[bool, bool, str]:
    """Sort duplicates first, then doubted labels, then what is odd."""
    return issue[0] not in _DUPLICATES, issue[0] != "label", issue[0]


def _audit_of(group: Group, data: ReportData) -> tuple[Path, dict[str, Any]] | None:
    """Return the audit of the tested images, by the features of the best method if there is one."""
    stores = (store for method in group.methods for store in method.result.stores)
    models = dict.fromkeys(store["manifest"]["backbone"]["model"] for store in stores)
    tested = group.methods[0].result.dataset["test"]["fingerprint"]
    return audit_of(data.context.workspace, tested, list(models))


def near_leaks(group: Group, data: ReportData) -> list[str]:
    """Warn of test images that an audit found nearly the same as training images."""
    if (known := _audit_of(group, data)) is None:
        return []
    path, audit = known
    listed = path.with_suffix(".csv").relative_to(data.context.workspace.root)
    near = audit["summary"]["duplicates"]["across"]["near"]
    text = (
        f"{near} test image{'s are' if near > 1 else ' is'} nearly the same as a training image "
        f"(see The data): --drop {listed} leaves the training images out."
    )
    return [text] if near else []


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
    every = " ".join(leaks(group, len(group.methods)))
    return every or "No test image is a training image, too, pixel for pixel."


def without_suspects(group: Group, findings: pd.DataFrame, tested: str) -> list[dict[str, Any]]:
    """Return the accuracy of each method on all test images, and without those of an audit.

    Suspects are test images with an identical image or a near-duplicate among the rows that can
    train, and test images whose label is doubted.
    """
    trained = group.methods[0].result.stores[0]["manifest"]["dataset"]["split"]
    pairs = findings[findings.issue.isin(_DUPLICATES)]
    one = pairs[["split", "id", "cluster"]]
    members = pd.concat(
        [one, pairs[["partner_split", "partner", "cluster"]].set_axis(one.columns, axis=1)]
    )
    leaking = members.cluster[members.split == trained]
    alike = {*members.id[(members.split == tested) & members.cluster.isin(leaking)]}
    doubted = {*findings.id[(findings.issue == "label") & (findings.split == tested)]}
    kinds = {
        "all": set(),
        "without duplicates": alike,
        "without doubted labels": doubted,
        "without both": alike | doubted,
    }
    return [
        {"method": method, "kinds": {kind: _without(method, out) for kind, out in kinds.items()}}
        for method in group.methods
    ]


def _without(method: Method, left_out: set[str]) -> tuple[int, Mapping[str, Any] | None]:
    """Return how many test images are left and, if there are any, the accuracy on them."""
    table = method.table
    kept = ~np.isin(table.ids, list(left_out))[table.row]
    images, rows = np.unique(table.row[kept], return_inverse=True)
    accuracy = accuracy_interval(table.correct[kept], rows).as_dict() if kept.any() else None
    return len(images), accuracy


class AuditedImages:
    """Images of all splits of a group, from the dataset or, where it is gone, from the stores."""

    def __init__(self, group: Group, data: ReportData) -> None:
        self._sheet = data.sheet
        # Of each split the rows by id, and what reads one.
        self._splits: dict[str, tuple[dict[str, int], Callable[[int], NDArray[np.uint8]]]] = {}
        for known in group.methods[0].result.stores:
            dataset = known["manifest"]["dataset"]
            with suppress(FeatpipeError, OSError):
                source = data.source([known], dataset["split"])
                if source.fingerprint == dataset["fingerprint"]:
                    rows = {name: row for row, name in enumerate(source.ids)}
                    self._splits[dataset["split"]] = rows, source.read
                    continue
            with suppress(FeatpipeError):
                store = find_store(group.methods[0], known, data.context.workspace.root)
                if store.has_looks:
                    rows = {name: row for row, name in enumerate(store.ids)}
                    self._splits[dataset["split"]] = rows, partial(_stored_thumbnail, store)

    def shown(self, findings: pd.DataFrame) -> list[dict[Any, Any]]:
        """Return findings with their thumbnails, and those of their partners."""
        return [
            {
                **row,
                "thumbnail": self._thumbnail(row["split"], row["id"]),
                "other": self._thumbnail(row["partner_split"], row["partner"]),
            }
            for row in map(dict, findings.to_dict("records"))
        ]

    def _thumbnail(self, split: str, name: str) -> Thumbnail | None:
        rows, read = self._splits.get(split, ({}, None))
        with suppress(FeatpipeError, OSError):
            if read is not None and name in rows:
                return self._sheet.add(f"audit {split}/{name}", read(rows[name]))
        return None


def _stored_thumbnail(store: FeatureStore, row: int) -> NDArray[np.uint8]:
    grey = np.array(store.looks("thumbnail")[row])
    return np.repeat(grey[..., None], 3, axis=2)
