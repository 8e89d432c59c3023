"""What ``featpipe clean`` lists is what featpipe wrote and nobody needs; the rest stays."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from featpipe.clean import find_unneeded
from featpipe.evaluation.result import Result
from featpipe.fingerprint import sealed_json
from featpipe.probes.nearest_mean import Centroid
from featpipe.store.layout import partial_path
from featpipe.workspace import Workspace, lock
from tests import stores
from tests.evaluation.methods import context, pair


@pytest.fixture
def work(tmp_path: Path) -> tuple[Workspace, Path]:
    """A workspace with stores, one result, and that result's path."""
    pair(tmp_path / "data" / "features" / "toy" / "toynet")
    there = context(tmp_path)
    return there.workspace, Centroid().run(there).paths[0]


def listed(workspace: Workspace) -> dict[str, str]:
    root = workspace.root
    return {str(one.path.relative_to(root)): one.why for one in find_unneeded(workspace)}


def test_a_tidy_workspace_has_nothing_to_remove(work: tuple[Workspace, Path]) -> None:
    assert listed(work[0]) == {}
    assert listed(Workspace(work[0].root / "empty")) == {}
    assert not (work[0].root / "empty").exists()


def test_what_runs_have_left_is_listed_and_removed(work: tuple[Workspace, Path]) -> None:
    workspace, path = work
    torn = workspace.results / ".a.json.0123456789abcdef.tmp"
    torn.write_bytes(b"torn")
    store = workspace.features / "toy" / "toynet" / "other.h5"
    with stores.StoreWriter(store, stores.content(5)):
        pass
    orphan = path.stem[:-8] + "00000000"
    for folder, ending in (("results", ".predictions.npz"), ("models", ".npz")):
        data = workspace.data / folder
        shutil.copy(data / f"{path.stem}{ending}", data / f"{orphan}{ending}")
    explained = workspace.results / f"{orphan}.explained" / "01234567"
    explained.mkdir(parents=True)
    (explained / "explanation.json").write_text("{}")
    (workspace.models / f"{orphan}.json").write_text('{"featpipe_head": 2}')
    (workspace.models / f"{orphan}.safetensors").write_bytes(b"torn")
    assert listed(workspace) == {
        f"data/results/{torn.name}": "temporary file of a run that was stopped",
        "data/features/toy/toynet/other.h5.partial": "unfinished store: the same extraction would "
        "continue it",
        f"data/results/{orphan}.predictions.npz": "belongs to no result",
        f"data/results/{orphan}.explained": "belongs to no result",
        **{
            f"data/models/{orphan}{end}": "belongs to no result"
            for end in (".npz", ".json", ".safetensors")
        },
    }
    for one in find_unneeded(workspace):
        assert one.n_bytes >= 0
        one.remove()
    assert listed(workspace) == {}
    assert Result.load(path).predictions()
    assert Centroid().run(context(workspace.root)).status == "up to date"


def test_what_is_being_written_is_not_listed(work: tuple[Workspace, Path]) -> None:
    workspace, _ = work
    temporary = workspace.results / ".a.json.0123456789abcdef.tmp"
    store = workspace.features / "toy" / "other.h5"
    with temporary.open("wb") as file, stores.StoreWriter(store, stores.content(5)):
        lock(file)
        assert listed(workspace) == {}
    assert len(listed(workspace)) == 2
    assert partial_path(store).exists()


def test_results_of_the_first_version_are_listed_with_their_files(
    work: tuple[Workspace, Path],
) -> None:
    workspace, path = work
    path.write_text(sealed_json({"schema": 1}))
    assert set(listed(workspace).values()) == {
        "result of featpipe 0.1",
        "belongs to a result of featpipe 0.1",
    }
    assert len(listed(workspace)) == 3


def test_files_of_a_damaged_result_stay(work: tuple[Workspace, Path]) -> None:
    workspace, path = work
    path.write_text("{")
    assert listed(workspace) == {}


def test_what_others_wrote_is_never_listed(work: tuple[Workspace, Path]) -> None:
    workspace, _ = work
    for name in (
        "results/notes.txt",
        "results/mine-01234567.predictions.npz",
        "results/mine-01234567.explained/01234567/diary.txt",
        "results/more-01234567.explained/01234567/diary",
        "results/most-01234567.explained/diary",
        "results/.mine.tmp",
        "models/mine-01234567.skops",
        "models/more-01234567.npz",
        "models/mine-01234567.json",
        "models/mine-01234567.safetensors",
        "models/mine-01234567.0.checkpoint",
        "features/mine.h5",
        "features/mine.h5.journal.txt",
    ):
        (workspace.data / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace.data / name).write_text("my own work")
    for ending in (".skops", ".npz"):
        with zipfile.ZipFile(workspace.models / f"zip-01234567{ending}", "w") as archive:
            archive.writestr("other", "my own work")
    mine = np.arange(3)
    np.savez(workspace.models / "own-01234567.npz", about=mine, bias=mine, weight=mine)
    answers = {"true": mine, "row": mine, "predicted": mine}
    np.savez(workspace.results / "own-01234567.predictions.npz", **answers)
    (workspace.results / ".link.0123456789abcdef.tmp").symlink_to(workspace.results / "notes.txt")
    assert listed(workspace) == {}
