"""Steps for tests; a worker process imports them from here."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from featpipe.errors import StoreError
from featpipe.steps import Context, Needs, Outcome, Step, option


class Work(Step):
    """Count to three and write a file."""

    name = "work"
    makes = ("result",)
    number: int = option(0, help="A number.")

    def run(self, context: Context) -> Outcome:
        with context.progress.task("counting", 3) as task:
            for _ in range(3):
                task.advance()
        path = context.workspace.root / f"work-{self.number}.txt"
        status = "up to date" if path.exists() else "done"
        path.write_text(str(self.number))
        print("printed by a library")
        recipe = dict(context.recipe or {})
        facts = {"recipe": recipe, "pid": os.getpid(), "jobs": context.jobs}
        return Outcome(status, f"{status}: {self.number}", (path,), facts)


class Refused(Work):
    """Fail with an explanation."""

    name = "refused"

    def run(self, context: Context) -> Outcome:
        raise StoreError("There is no such feature store.", next_step="featpipe store list")


class Killed(Work):
    """Be killed as the system does when memory runs out."""

    name = "killed"

    def run(self, context: Context) -> Outcome:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Greedy(Work):
    """Ask for more memory than there is."""

    name = "greedy"

    def run(self, context: Context) -> Outcome:
        return Outcome("done", str(np.empty(1 << 58)))


class Broken(Work):
    """Have a defect."""

    name = "broken"

    def run(self, context: Context) -> Outcome:
        return context.no_such_thing  # type: ignore[attr-defined]


class Slow(Work):
    """Work for a minute, deaf or not to SIGTERM."""

    name = "slow"
    deaf: bool = option(False, help="Ignore SIGTERM.")

    def run(self, context: Context) -> Outcome:
        if self.deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        context.progress.note(str(os.getpid()))
        time.sleep(60)
        return Outcome("done", "slept")


class Join(Step):
    """Read the files of all other steps."""

    name = "join"
    needs = Needs("result", each=False)
    texts: tuple[str, ...] | None = option(None, help="What the files hold.", bound=True)

    def bind(self, inputs):
        return self.replace(texts=tuple(path.read_text() for paths in inputs for path in paths))

    def run(self, context: Context) -> Outcome:
        return Outcome("done", "+".join(self.texts or ()))
