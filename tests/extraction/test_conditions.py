"""Extraction where the disk, the memory, the rights or another process are in the way.

What exists is kept, the error names the file and what to do, and the same command then continues
to the bytes of an undisturbed run.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featpipe.datasets.dataset import DatasetOptions, open_source
from featpipe.datasets.source import ImageSource
from featpipe.errors import StoreError
from featpipe.extraction import Extract
from featpipe.extraction import engine as extracting
from featpipe.steps import Context
from featpipe.store import FeatureStore
from featpipe.workspace import Workspace
from tests import images, stores

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return images.photo_archive(tmp_path / "toy.npz", 24)


def asked(archive: Path) -> Extract:
    return Extract(model="glyphnet", dataset=f"npz:{archive}", device="cpu", batch_size=4)


def features(archive: Path, workspace: Path) -> np.ndarray:
    """Run the step to its end and return what it stored."""
    outcome = asked(archive).run(Context(Workspace(workspace)))
    FeatureStore(outcome.paths[0]).verify()
    assert not list(workspace.rglob("*.partial")) + list(workspace.rglob("*.sealing"))
    return FeatureStore(outcome.paths[0]).features()


def command(
    archive: Path, workspace: Path, before: Callable[[], Any] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which calls a function ``before`` it starts."""
    arguments = ["extract", "--model", "glyphnet", "--dataset", f"npz:{archive}"]
    arguments += ["--device", "cpu", "--batch-size", "4", "--workspace", str(workspace)]
    return subprocess.run(
        [sys.executable, "-m", "featpipe", *arguments],
        preexec_fn=before,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


class Watched(ImageSource):
    """A source that calls a function before its last image is read."""

    def __init__(self, source: ImageSource, call: Callable[[], None]) -> None:
        self.__dict__.update(source.__dict__)
        self.inner, self.call = source, call

    def read(self, row: int) -> Any:
        if row == len(self) - 1:
            self.call()
        return self.inner.read(row)


def test_a_second_process_is_told_and_changes_nothing(archive: Path, tmp_path: Path) -> None:
    """It starts while the first one reads its last image."""
    second = []
    source = open_source(f"npz:{archive}", "all", DatasetOptions())
    watched = Watched(source, lambda: second.append(command(archive, tmp_path / "work")))
    extraction = asked(archive).extraction(Context(Workspace(tmp_path / "work")), download=False)
    extraction.__dict__["sources"] = [watched]
    (store,) = extraction.stores()
    assert second[0].returncode == 1
    assert "Another process is writing this store" in second[0].stderr
    assert "wait for it" in second[0].stderr
    np.testing.assert_array_equal(store.features(), features(archive, tmp_path / "alone"))


def test_a_store_that_was_sealed_meanwhile_is_not_written_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for a store and the lock on the unfinished file."""
    writer = extracting.StoreWriter

    def open_late(*arguments: Any) -> Any:
        monkeypatch.setattr(extracting, "StoreWriter", writer)
        features(archive, tmp_path / "work")
        return writer(*arguments)

    monkeypatch.setattr(extracting, "StoreWriter", open_late)
    with pytest.raises(StoreError, match="Another process"):
        features(archive, tmp_path / "work")
    assert features(archive, tmp_path / "work").shape == (24, 128)


def limited(what: int, amount: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(what, (amount, amount))


def test_a_full_disk_keeps_the_rows_and_names_the_next_step(archive: Path, tmp_path: Path) -> None:
    """As a limit on the size of files, which needs no rights; see tests/store for full disks."""
    whole = features(archive, tmp_path / "alone")
    ended = command(archive, tmp_path / "work", before=limited(resource.RLIMIT_FSIZE, 12_000))
    assert ended.returncode == 1
    assert "The disk is full" in ended.stderr
    assert str(tmp_path / "work") in ended.stderr
    assert "free some space and run the same command again" in ended.stderr
    np.testing.assert_array_equal(features(archive, tmp_path / "work"), whole)


def test_a_folder_that_may_only_be_read_is_named(archive: Path, tmp_path: Path) -> None:
    """Rights do not keep root from writing; a file in the place of a folder keeps everybody."""
    folder = tmp_path / "work" / "data" / "features" / "npz-toy"
    folder.parent.mkdir(parents=True)
    folder.write_text("")
    with pytest.raises(StoreError, match="cannot be written") as caught:
        features(archive, tmp_path / "work")
    assert str(folder) in caught.value.details["where"]
    folder.unlink()
    assert features(archive, tmp_path / "work").shape == (24, 128)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workspace_that_may_only_be_read_is_up_to_date(archive: Path, tmp_path: Path) -> None:
    whole = features(archive, tmp_path / "work")
    folders = [path for path in (tmp_path / "work").rglob("*") if path.is_dir()]
    for folder in folders:
        folder.chmod(0o500)
    try:
        np.testing.assert_array_equal(features(archive, tmp_path / "work"), whole)
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_too_little_memory_is_said_and_keeps_what_was_written(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an allocation that fails: limits on a process end it at other places each time."""
    whole = features(archive, tmp_path / "alone")
    embed = extracting.Batch.embed

    def fail_late(self: Any, *arguments: Any) -> Any:
        if self.rows.start == 12:
            raise MemoryError
        return embed(self, *arguments)

    monkeypatch.setattr(extracting.Batch, "embed", fail_late)
    with pytest.raises(MemoryError):
        features(archive, tmp_path / "work")
    (partial,) = (tmp_path / "work").rglob("*.partial")
    assert stores.kept_rows(partial) == 12
    monkeypatch.setattr(extracting.Batch, "embed", embed)
    np.testing.assert_array_equal(features(archive, tmp_path / "work"), whole)


def test_it_works_where_the_parent_ignores_ctrl_c(archive: Path, tmp_path: Path) -> None:
    """As in the background of a script."""
    ended = command(
        archive,
        tmp_path / "work",
        before=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert ended.returncode == 0, ended.stderr
    np.testing.assert_array_equal(
        features(archive, tmp_path / "work"), features(archive, tmp_path / "alone")
    )
