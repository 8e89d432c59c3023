"""What is known about a task once it has run, or could not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featpipe.pipeline.task import Task

DONE = "done"
UP_TO_DATE = "up to date"
FAILED = "failed"
NOT_RUN = "not run"
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Record:
    """The end of one task.

    Attributes
    ----------
    task : Task
    status : {"done", "up to date", "failed", "not run", "interrupted"}
    seconds : float
    message : str
        What it did, or why it failed.
    paths : tuple of str
        Files it made or found.
    details : mapping
        Of a failure: where, expected, got, next.
    table : list of dict or None
    exit_code : int
    """

    task: Task
    status: str
    seconds: float = 0.0
    message: str = ""
    paths: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    table: list[dict[str, Any]] | None = None
    exit_code: int = 0

    @property
    def succeeded(self) -> bool:
        """Whether what depends on it can run."""
        return self.status in (DONE, UP_TO_DATE)

    def facts(self) -> dict[str, Any]:
        """Return the record as JSON-like values."""
        return {
            "task": self.task.name,
            "status": self.status,
            "seconds": round(self.seconds, 2),
            "message": self.message,
            "paths": list(self.paths),
            **({"details": dict(self.details)} if self.details else {}),
        }


@dataclass(frozen=True)
class RunSummary:
    """How a run of a recipe ended.

    Attributes
    ----------
    records : tuple of Record
        One per task, in the order of the plan.
    command : str
        What to type to continue.
    """

    records: tuple[Record, ...]
    command: str

    @property
    def exit_code(self) -> int:
        """0, 1 where a task failed or left something out, 130 where the run was interrupted."""
        if any(record.status == INTERRUPTED for record in self.records):
            return 130
        return int(any(not r.succeeded or r.exit_code for r in self.records))

    def message(self) -> str:
        """Return the summary in words: what failed, why, and the command to continue."""
        lines = []
        for record in self.records:
            if record.status in (FAILED, INTERRUPTED):
                lines.append(f"{record.status}: {record.task.name}: {record.message}")
                lines += [f"    {label}: {text}" for label, text in record.details.items()]
            elif record.status == NOT_RUN:
                lines.append(f"not run: {record.task.name}: {record.message}")
            elif record.exit_code:
                lines.append(f"incomplete: {record.task.name}: something was left out, see above")
        counts = ", ".join(f"{n} {status}" for status, n in _counted(self.records).items())
        lines.append(f"{len(self.records)} tasks: {counts}")
        if any(not record.succeeded for record in self.records):
            lines.append(f"continue with: {self.command}")
        return "\n".join(lines)


def _counted(records: Sequence[Record]) -> dict[str, int]:
    statuses = [record.status for record in records]
    order = (DONE, UP_TO_DATE, FAILED, INTERRUPTED, NOT_RUN)
    return {status: statuses.count(status) for status in order if status in statuses}
