"""``featpipe clean``: files of featpipe that are no longer needed."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from featpipe.evaluation.result import OldResultError, scan_results
from featpipe.files import read_json
from featpipe.store import scan_stores
from featpipe.store.layout import partial_path, shard_folder
from featpipe.workspace import (
    Workspace,
    explain_os_errors,
    is_locked,
    leftovers,
    one_at_a_time,
    store_files,
)

# What follows the name of a result: its last part is eight letters of the result's key.
_OF_RESULT = re.compile(
    r"(?P<result>.+-[0-9a-f]{8})"
    r"((\.predictions)?\.npz|\.explained|\.skops|\.safetensors|\.json|(\.\d+)(\.refit)?\.checkpoint)"
)
_PICTURE = re.compile(r"[0-9a-f]{8}/([0-9a-f]{12}\.png|explanation\.json|\..+\.tmp)")


@dataclass(frozen=True)
class Unneeded:
    """A file, or a folder of pictures, that is no longer needed."""

    path: Path
    why: str

    @property
    def n_bytes(self) -> int:
        """Its size, without what links in it point to."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.lstat().st_size for file in files if not file.is_dir())

    def remove(self) -> None:
        """Remove it."""
        with explain_os_errors(self.path):
            if self.path.is_dir():
                shutil.rmtree(self.path)
            else:
                self.path.unlink(missing_ok=True)


def find_unneeded(workspace: Workspace) -> list[Unneeded]:
    """Return leftovers, unfinished stores, files without a result, and files of featpipe 0.1.

    By its name and content, each was written by featpipe. Links, and what a process is writing at
    the moment, are not among them.
    """
    whys: dict[Path, str] = {}
    for top in (workspace.data, workspace.reports):
        for folder in sorted({top, *filter(Path.is_dir, top.rglob("*"))}):
            left = [path for path in leftovers(folder) if not is_locked(path)]
            whys |= dict.fromkeys(left, "temporary file of a run that was stopped")
    for folder in (workspace.features, workspace.activations):
        for path in store_files(folder, "*.h5.partial"):
            if not is_locked(path):
                parts = path, path.with_suffix(".sealing"), shard_folder(path)
                for part in filter(Path.exists, parts):
                    whys[part] = "unfinished store: the same extraction would continue it"
        for path in sorted(folder.rglob("*.shards")):
            store = path.with_suffix(".h5")
            if not (store.exists() or partial_path(store).exists()):
                whys[path] = "shards without a store"
        for error in scan_stores(folder)[1]:
            path = Path(error.details.get("where", ""))
            if error.what.endswith("featpipe 0.1."):
                for part in filter(Path.is_file, (path, path.with_name(f"{path.name}.journal"))):
                    whys[part] = "store of featpipe 0.1"
    for path, why in _results(workspace):
        whys.setdefault(path, why)
    return [Unneeded(path, why) for path, why in whys.items() if not path.is_symlink()]


def files_of(workspace: Workspace, name: str) -> list[Unneeded]:
    """Return the files of a result, itself first: without it, the others are not needed."""
    result = workspace.results / f"{name}.json"
    found = [path for path, of in _named_after_results(workspace).items() if of == name]
    return [Unneeded(path, "belongs to the result") for path in dict.fromkeys([result, *found])]


def _named_after_results(workspace: Workspace) -> dict[Path, str]:
    """Return the files that are named after a result, each with the name of that result."""
    files = sorted([*workspace.results.glob("*"), *workspace.models.glob("*")])
    matches = [(path, _OF_RESULT.fullmatch(path.name)) for path in files]
    return {path: match["result"] for path, match in matches if match}


def _results(workspace: Workspace) -> Iterator[tuple[Path, str]]:
    folder = workspace.results
    with one_at_a_time(folder) if folder.is_dir() else nullcontext():  # not while one is written
        results, errors = scan_results(folder)
        files = _named_after_results(workspace)
    old = {Path(one.details["where"]) for one in errors if isinstance(one, OldResultError)}
    damaged = {Path(one.details["where"]) for one in errors} - old
    named = {path.stem for path in damaged} | {result.name for result in results}
    for path in sorted(old):
        yield path, "result of featpipe 0.1"
    for path, name in files.items():
        if name in named or not _is_ours(path):
            continue
        if path.suffix == ".checkpoint":
            yield path, "unfinished training: the same command would continue it"
        elif name in {one.stem for one in old}:
            yield path, "belongs to a result of featpipe 0.1"
        else:
            yield path, "belongs to no result"


def _is_ours(path: Path) -> bool:
    """Return whether the content of a file shows that featpipe wrote it."""
    if path.is_dir():
        files = [file.relative_to(path) for file in path.rglob("*") if not file.is_dir()]
        return all(_PICTURE.fullmatch(str(file)) for file in files)
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        if path.suffix in (".json", ".safetensors"):
            about = read_json(path.with_suffix(".json"))
            return isinstance(about, dict) and "featpipe_head" in about
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if path.name.endswith(".predictions.npz"):
                return {"ids.npy", "true.npy", "row.npy", "predicted.npy"} <= {*names}
            if about := {".skops": "schema.json", ".npz": "about.npy"}.get(path.suffix):
                return b'"featpipe_model"' in archive.read(about)
            return any(name.endswith("/data.pkl") for name in names)
    return False
