"""The parent's side of the worker: start it, listen to it, notice when it dies."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

TERMINATED = 128 + signal.SIGTERM  # the exit code of a worker that was told to end
_PATIENCE_SECONDS = 10.0

Event = Mapping[str, Any]


class WorkerProcess:
    """A worker that is started when it is needed and again after it has died.

    Use as a context manager: leaving the block ends the process, gently where it listens.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._busy = False

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        # Without orders the worker ends by itself and tidies up its own workers; one that is still
        # at a task, because the user interrupted the run, has to be told.
        if self._busy or not _ended(process):
            process.terminate()
        if not _ended(process):
            process.kill()
            process.wait()
        process.stdout.close()

    def run(self, order: Event, on_event: Callable[[Event], None]) -> Event:
        """Let the worker carry out an order; return its last event, or the news of its death."""
        process = self._process = self._process or _start()
        assert process.stdin is not None
        assert process.stdout is not None
        self._busy = True
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] in ("finished", "failed"):
                self._busy = False
                return event
            on_event(event)
        self._process, self._busy = None, False
        with contextlib.suppress(BrokenPipeError):  # closing tries once more to send the order
            process.stdin.close()
        process.stdout.close()
        return {"event": "failed", **describe_death(process.wait())}


def describe_death(code: int) -> dict[str, Any]:
    """Return why a process ended, as the message and the details of a failure.

    Parameters
    ----------
    code : int
        Exit code; minus the number of the signal where one ended it.

    Examples
    --------
    >>> describe_death(-15)["message"]
    'the process was killed by SIGTERM'
    >>> describe_death(143)["message"]
    'the process was killed by SIGTERM'
    """
    if code == TERMINATED:
        code = -signal.SIGTERM
    if code >= 0:
        return {"message": f"the process ended itself with exit code {code}", "details": {}}
    name = signal.Signals(-code).name
    if name != "SIGKILL":
        return {"message": f"the process was killed by {name}", "details": {}}
    return {
        "message": "the process was killed by SIGKILL; most often the system ran out of memory",
        "details": {"next": "if memory is short: --limit N, --jobs 1, or a smaller batch_size"},
    }


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "featpipe.pipeline.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )


def _ended(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True
