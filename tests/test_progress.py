"""Progress: one shape of event, as often as somebody wants to hear it."""

from __future__ import annotations

import pickle
import sys
from types import SimpleNamespace

from featpipe.progress import SILENT, Event, Progress


def test_work_tells_its_start_its_end_and_notes():
    heard = []
    progress = Progress(heard.append, seconds_between=1000)
    with progress.task("embedding", total=5, done=2) as task:
        progress.note("skipped one")
        task.advance(3, rate="3 images/s")
    assert [(event.event, event.message, event.done) for event in heard] == [
        ("progress", "embedding", 2),
        ("note", "skipped one", 0),
        ("progress", "embedding", 5),
    ]
    assert heard[-1].facts == {"rate": "3 images/s"}
    assert {event.total for event in heard if event.event == "progress"} == {5}


def test_progress_is_told_as_often_as_is_asked_for():
    heard = []
    with Progress(heard.append, seconds_between=0).task("all", 100) as task:
        for _ in range(100):
            task.advance()
    often = len(heard)
    heard.clear()
    with Progress(heard.append, seconds_between=1000).task("some", 100) as task:
        for _ in range(100):
            task.advance()
    assert often > 50 > len(heard)
    assert heard[-1].done == 100


def test_an_event_is_json_like_and_crosses_processes():
    event = Event("progress", "embedding", 3, 5, {"rate": "1"}, "extract[model=a]")
    assert event.as_dict() == {
        "event": "progress",
        "message": "embedding",
        "done": 3,
        "total": 5,
        "rate": "1",
        "task": "extract[model=a]",
    }
    assert Event("note", "hello").as_dict() == {"event": "note", "message": "hello"}
    assert pickle.loads(pickle.dumps(event)) == event


def test_silence_hears_everything_and_tells_nothing(capsys):
    with SILENT.task("anything", 1) as task:
        task.advance()
    SILENT.note("a note")
    assert capsys.readouterr() == ("", "")


def test_a_notebook_shows_bars_and_a_script_does_not(monkeypatch, capsys):
    assert Progress.find() is SILENT
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    progress = Progress.find()
    progress.note("resnet18 runs in PyTorch")
    with progress.task("digits train", 4) as task:
        task.advance(4, rate="9.0 images/s")
    with progress.task("nothing to do", 0):
        pass
    shown = capsys.readouterr()
    assert "resnet18 runs in PyTorch" in shown.out
    assert "digits train: 100%" in shown.err
    assert "9.0 images/s" in shown.err
    assert "nothing to do" not in shown.err
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert Progress.find() is SILENT
