"""What an audit found of the tested images, and what the accuracies are without its suspects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featpipe.audit.record import audit_of, load_findings
from featpipe.errors import DataError
from featpipe.statistics.intervals import accuracy_interval

if TYPE_CHECKING:
    from featpipe.reporting.data import Group, Method
    from featpipe.workspace import Workspace

_DUPLICATES = ("identical", "near-duplicate")


@dataclass(frozen=True, eq=False)
class Suspects:
    """The audit of a group's test images, where there is one; ``unread`` says what is wrong."""

    group: Group
    path: Path | None = None
    audit: dict[str, Any] | None = None
    findings: pd.DataFrame | None = None
    unread: str = ""

    @classmethod
    def of(cls, group: Group, workspace: Workspace) -> Suspects:
        """Find the audit of the tested images, by the features of the best method if it has one."""
        stores = (store for method in group.methods for store in method.result.stores)
        models = dict.fromkeys(store["manifest"]["backbone"]["model"] for store in stores)
        tested = group.methods[0].result.dataset["test"]["fingerprint"]
        if (known := audit_of(workspace, tested, list(models))) is None:
            return cls(group)
        path, audit = known
        try:
            return cls(group, path, audit, load_findings(path))
        except DataError as error:  # the list was edited
            return cls(group, path, audit, unread=str(error))

    @property
    def left_out(self) -> dict[str, set[str]]:
        """Ids of the test images that are left out: what → ids, if there are any.

        Copies are test images with an identical image or a near-duplicate among the rows that can
        train; without an audit, those with an identical one.
        """
        accounts = (method.result.extra.get("leaks") or {} for method in self.group.methods)
        copies = {name for account in accounts for name in account.get("ids", ())}
        doubted: set[str] = set()
        if self.findings is not None:
            result, found = self.group.methods[0].result, self.findings
            trained = result.stores[0]["manifest"]["dataset"]["split"]
            tested = result.dataset["test"]["split"]
            pairs = found[found.issue.isin(_DUPLICATES)]
            one = pairs[["split", "id", "cluster"]]
            other = pairs[["partner_split", "partner", "cluster"]].set_axis(one.columns, axis=1)
            members = pd.concat([one, other])
            leaking = members.cluster[members.split == trained]
            here = (members.split == tested) & members.cluster.isin(leaking)
            copies |= {*members.id[here]}
            doubted = {*found.id[(found.issue == "label") & (found.split == tested)]}
        ids = {*self.group.ids.tolist()}
        kinds = {"copies of training images": copies & ids, "doubted labels": doubted & ids}
        found_kinds = {what: names for what, names in kinds.items() if names}
        if len(found_kinds) > 1:
            found_kinds["both"] = set().union(*found_kinds.values())
        return found_kinds

    def accuracies(self) -> pd.DataFrame:
        """Return the accuracy of each method with all test images and without the suspects.

        A row for each method and set of images: ``result``, ``method``, ``without``, ``images``,
        ``accuracy``, ``low``, ``high``; the last three are missing where no image is left. Empty
        where nothing is suspected.
        """
        kinds = self.left_out
        if kinds:
            kinds = {"": set[str](), **kinds}
        return pd.DataFrame(
            {
                "result": method.row["name"],
                "method": method.title,
                "without": what,
                **_accuracy(method, names),
            }
            for method in self.group.methods
            for what, names in kinds.items()
        )


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
    top = known[known.accuracy == known.groupby("without").accuracy.transform("max")]
    best = {str(what): [*rows] for what, rows in top.groupby("without", sort=False).method}
    changed = [
        f"without {what}, it is {' and '.join(methods)}"
        for what, methods in best.items()
        if methods != best[""]
    ]
    if accuracies.method.nunique() < 2:
        return ""
    if not changed:
        return "Leaving them out does not change which method has the highest accuracy."
    return f"The highest accuracy with all images: {' and '.join(best[''])}; {'; '.join(changed)}."
