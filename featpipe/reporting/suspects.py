"""What an audit found of the tested images, and what the accuracies are without its suspects."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featpipe.audit.audit import COLUMNS
from featpipe.audit.record import audit_of, fingerprints, load_findings
from featpipe.errors import DataError
from featpipe.statistics.intervals import accuracy_interval

if TYPE_CHECKING:
    from featpipe.reporting.data import Group, Method
    from featpipe.workspace import Workspace

DUPLICATES = ("identical", "near-duplicate")  # of the issues in a list of findings


@dataclass(frozen=True, eq=False)
class Suspects:
    """The audit of a group's test images, if there is one; ``unread``: why its list is unusable."""

    group: Group
    path: Path | None = None
    audit: dict[str, Any] | None = None
    findings: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COLUMNS)))
    unread: str = ""

    @classmethod
    def of(cls, group: Group, workspace: Workspace) -> Suspects:
        """Find the audit of the images, by the features of the best method if it has one.

        An audit must cover the test images and the training images of some method.
        """
        tested = group.methods[0].result.dataset["test"]["fingerprint"]
        for method in group.methods:
            if (trained := method.trained_on) is None:
                continue
            manifests = (store["manifest"] for store in method.result.stores)
            models = dict.fromkeys(manifest["backbone"]["model"] for manifest in manifests)
            images = {tested, trained["fingerprint"]}
            if known := audit_of(workspace, images, list(models)):
                path, audit = known
                try:
                    return cls(group, path, audit, load_findings(path))
                except DataError as error:  # the list was edited
                    return cls(group, path, audit, unread=str(error))
        return cls(group)

    @cached_property
    def copies(self) -> set[str]:
        """Ids of test images with an identical image or a near-duplicate that trained a model.

        Without an audit, those with an identical one.
        """
        pairs = self.findings[self.findings.issue.isin(DUPLICATES)]
        one = pairs[["dataset", "split", "id", "cluster"]]
        other = pairs[["partner_dataset", "partner_split", "partner", "cluster"]]
        members = pd.concat([one, other.set_axis(one.columns, axis=1)]).drop_duplicates()
        audited = fingerprints(self.audit) if self.audit else set()
        alike = (_alike(method, members, audited) for method in self.group.methods)
        return self.exact.union(*alike) & {*self.group.ids.tolist()}

    @property
    def exact(self) -> set[str]:
        """Ids of test images with an identical image that trained a model."""
        accounts = (method.result.extra.get("leaks") or {} for method in self.group.methods)
        return {name for account in accounts for name in account.get("ids", ())}

    @property
    def unaudited(self) -> list[Method]:
        """The methods whose training images the audit does not cover."""
        known = fingerprints(self.audit) if self.audit else set()
        return [
            method
            for method in self.group.methods
            if (trained := method.trained_on) and trained["fingerprint"] not in known
        ]

    @property
    def across(self) -> bool:
        """Whether the methods were trained and tested on different splits."""
        tested = self.group.methods[0].result.dataset["test"]["fingerprint"]
        trained = filter(None, (method.trained_on for method in self.group.methods))
        return any(dataset["fingerprint"] != tested for dataset in trained)

    @property
    def near(self) -> int:
        """How many test images are nearly the same as training images, not exactly."""
        return len(self.copies - self.exact)

    @property
    def left_out(self) -> dict[str, set[str]]:
        """Ids of the test images that are left out: what → ids, if there are any."""
        tested = _in_split(self.findings, self.group.methods[0].result.dataset["test"])
        doubted = {*tested.id[tested.issue == "label"]} & {*self.group.ids.tolist()}
        copies = "copies and near-duplicates" if self.near else "copies"
        kinds = {f"{copies} of training images": self.copies, "doubted labels": doubted}
        if all(kinds.values()):
            kinds["both"] = doubted | self.copies
        return {what: names for what, names in kinds.items() if names}

    @cached_property
    def accuracies(self) -> pd.DataFrame:
        """The accuracy of each method with all test images and without the suspects.

        A row for each method and set of images: ``result``, ``method``, ``without``, ``images``,
        ``accuracy``, ``low``, ``high``; the last three are missing where no image is left. Empty
        where nothing is suspected.
        """
        kinds = {"": set[str](), **suspected} if (suspected := self.left_out) else {}
        return pd.DataFrame(
            {"result": method.row["name"], "method": method.title, "without": what}
            | _accuracy(method, names)
            for method in self.group.methods
            for what, names in kinds.items()
        )


def _in_split(listed: pd.DataFrame, dataset: dict[str, Any]) -> pd.DataFrame:
    """Return the listed images of a split, given its dataset in a manifest."""
    return listed[(listed.dataset == dataset["name"]) & (listed.split == dataset["split"])]


def _alike(method: Method, members: pd.DataFrame, audited: set[str]) -> set[str]:
    """Return the test images of a method that share a cluster with an image that trained it."""
    result, table = method.result, method.table
    account, train, tested = result.extra.get("leaks"), method.trained_on, result.dataset["test"]
    if account is None or train is None or train["fingerprint"] not in audited:
        return set()  # nothing was trained, or on images that the audit does not cover
    trained = _in_split(members, train)
    trained = trained[~trained.id.isin(account.get("not_trained", ()))]
    if "trained" in account:
        trained = trained[trained.id.isin(account["trained"])]
    asked = _in_split(members, tested)
    if train["fingerprint"] != tested["fingerprint"]:
        return {*asked.id[asked.cluster.isin(trained.cluster)]}
    found: set[str] = set()
    for number in np.unique(table.split):  # rows of one store: a model trains on those it skips
        ids = table.ids[table.row[table.split == number]]
        left = trained.cluster[~trained.id.isin(ids)]
        found |= {*asked.id[asked.id.isin(ids) & asked.cluster.isin(left)]}
    return found


def _accuracy(method: Method, left_out: set[str]) -> dict[str, Any]:
    table = method.table
    kept = ~np.isin(table.ids, list(left_out))[table.row]
    images, rows = np.unique(table.row[kept], return_inverse=True)
    found: dict[str, Any] = {"images": len(images), "accuracy": None, "low": None, "high": None}
    if kept.any():
        interval = accuracy_interval(table.correct[kept], rows)
        found |= {"accuracy": interval.value, "low": interval.low, "high": interval.high}
    return found


def who_is_best(accuracies: pd.DataFrame) -> str:
    """Say whether leaving out suspects changes which method has the highest accuracy."""
    known = accuracies.dropna(subset="accuracy").round({"accuracy": 12})
    highest = known[known.accuracy == known.groupby("without").accuracy.transform("max")]
    best = highest.groupby("without", sort=False).method.agg(" and ".join)
    changed = [f"without {what}, it is {top}" for what, top in best.items() if top != best[""]]
    if accuracies.method.nunique() < 2:
        return ""
    if not changed:
        return "Leaving them out does not change which method has the highest accuracy."
    return f"The highest accuracy with all images: {best['']}; {'; '.join(changed)}."
