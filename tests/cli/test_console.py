"""What a person sees in a terminal, and a script in a pipe."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from featpipe.cli.console import Console, JsonConsole
from featpipe.errors import FeatpipeError, StoreError
from featpipe.progress import Event
from featpipe.steps import Outcome

SCRIPT = """
from featpipe.cli.console import Console
from featpipe.errors import StoreError
from featpipe.progress import Event
from featpipe.steps import Outcome
console = Console()
console.follow(Event("started", "extract", 1, 2, {"seconds_left": 30.0}, "extract"))
console.hear(Event("progress", "digits train", 5, 10, {"rate": "7.5 images/s"}))
console.progress.note("skipped [one]")
console.follow(Outcome("done", "done\\n10 images", task="extract", seconds=1.25))
console.outcome(Outcome("done", "1 tasks: 1 done", table=[{"task": "extract", "n": 10}]))
console.error(StoreError("There is no such store.", where="[x].h5"))
"""


def in_a_terminal(code: str, columns: int = 120) -> tuple[str, str]:
    """Run Python with a terminal as standard error; return both outputs, colours taken out."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=follower,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
    )
    os.close(follower)
    shown = b""
    try:
        while block := os.read(leader, 4096):
            shown += block
    except OSError:  # Linux's way to say that the other side is closed
        pass
    out, _ = process.communicate()
    os.close(leader)
    assert process.returncode == 0, shown
    return out.decode(), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_a_terminal_shows_bars_notes_outcomes_and_errors():
    out, shown = in_a_terminal(SCRIPT)
    for text in (
        "all tasks",
        "about 30 s left",
        "digits train",
        "5/10",
        "7.5 images/s",
        "skipped [one]",
        "done: extract (1.2 s)",
        "    10 images",
        "error: There is no such store.",
        "where: [x].h5",
    ):
        assert text in shown
    assert out.splitlines() == ["task      n", "extract  10", "1 tasks: 1 done"]


LONG = """
from featpipe.cli.console import Console
from featpipe.progress import Event
console = Console()
facts = {"rate": "123.4 images/s", "shares": "read 10% · compute 80% · write 10%"}
for done in (1000, 2000):
    console.hear(Event("progress", "LABEL", done, 13000, facts))
    console.hear(Event("note", "a note"))  # the bars are drawn again before it
"""


@pytest.mark.parametrize(
    ("label", "columns", "says"),
    [
        ("folder:photos train · resnet50", 80, "123.4 images/s"),
        ("folder:photos train · resnet50", 140, "write 10%"),
        ("folder:" + "x" * 90, 80, "xxx…"),
    ],
)
def test_bar_and_time_left_fit_into_the_line(label, columns, says):
    _, shown = in_a_terminal(LONG.replace("LABEL", label), columns)
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown) if "2000/13000" in line]
    assert lines
    assert all(len(line) <= columns for line in lines)
    assert re.search(r"━ +2000/13000 [-0-9]:", lines[-1])
    assert says in lines[-1]


def test_without_a_terminal_there_are_no_bars(capsys):
    console = Console()
    with console.progress.task("digits train", 10) as task:
        task.advance(10)
    console.progress.note("one line")
    assert capsys.readouterr() == ("", "one line\n")


def test_quiet_tells_errors_only(capsys):
    console = Console(quiet=True)
    console.progress.note("a note")
    console.task_ended(Outcome("done", "done", task="svm"))
    console.outcome(Outcome("done", "done", table=[{"a": 1}]))
    assert capsys.readouterr() == ("", "")
    console.error(StoreError("There is no such store."))
    assert capsys.readouterr().err == "error: There is no such store.\n"


def test_a_script_gets_events_and_outcomes_of_one_shape(capsys):
    console = JsonConsole()
    console.follow(Event("started", "svm", 1, 1, task="svm"))
    console.follow(Outcome("done", "done", (Path("a.json"),), {"accuracy": 0.5}, task="svm"))
    console.error(StoreError("There is no such store.", where="x.h5"))
    started, ended, failed = map(json.loads, capsys.readouterr().out.splitlines())
    assert started == {"event": "started", "message": "svm", "done": 1, "total": 1, "task": "svm"}
    assert ended["accuracy"] == 0.5
    assert (ended["event"], ended["task"], ended["paths"]) == ("outcome", "svm", ["a.json"])
    assert (failed["status"], failed["error"]) == ("failed", "StoreError")
    assert failed["details"] == {"where": "x.h5"}


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\x07\u202egpj.exe\r\x9b"
    console = Console()
    console.outcome(Outcome("done", f"read {name}\nnext line", table=[{"file": name}]))
    console.error(FeatpipeError(f"The image {name} is broken.", where=name))
    console.progress.note(name)
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not set("\x1b\x07\u202e\r\x9b") & set(text)
        assert "a\\x1b[31m\\x07\\u202egpj.exe\\r\\x9b" in text
    assert "\nnext line" in out
