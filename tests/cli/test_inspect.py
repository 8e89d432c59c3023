"""Commands that show what there is: stores, results, label maps; completion."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import REPOSITORY, in_process


def test_store_commands(run: Any, extract: str) -> None:
    assert "make one: featpipe extract" in run("store list").out
    path = run(f"{extract} --json").events[-1]["paths"][0]
    Path("data/features/x.h5").write_bytes(b"damaged")
    Path("data/features/y.h5.partial").write_bytes(b"")
    rows = {row["path"]: row for row in run("store list --json").events[0]["table"]}
    assert rows[path]["state"] == "sealed"
    assert rows[path]["images"] == 12
    assert "not a sealed feature store" in rows["data/features/x.h5"]["state"]
    assert rows["data/features/y.h5.partial"]["state"] == "unfinished"
    assert path in run("store list").out
    facts = json.loads(run(f"store info {path}").out)
    assert facts["layers"] == {"avgpool": [12, 64]}
    assert facts["classes"] == ["ant", "bee", "cät"]
    assert run(f"store verify {path}") == (0, "1 of 1 stores are whole\n", "")
    all_of_them = run("store verify")
    assert all_of_them.code == 1
    assert "1 of 2 stores are whole" in all_of_them.out
    assert "x.h5" in all_of_them.err
    assert run(f"store export {path} out/f.npz").code == 0
    assert Path("out/f.npz").exists()
    assert run(f"store export {path} f.xlsx").code == 2
    assert run(f"store export {path} photos/").code == 2
    assert run(f"store export {path} w.safetensors/f.npz").code == 1
    assert run(f"store export {path} /proc/f.npz").code == 1
    assert run(f"store export {path} f.npz --layer avgpol").code == 2


def test_results_that_cannot_be_read_are_listed_with_the_reason(run: Any) -> None:
    folder = Path("data/results")
    folder.mkdir(parents=True)
    (folder / "old.json").write_text('{"schema": 1, "command": "featpipe svm"}')
    (folder / "torn.json").write_text('{"schema": 2')
    rows = {row["name"]: row["method"] for row in run("results --json").events[-1]["table"]}
    assert "featpipe 0.1" in rows["old"]
    assert "cannot be read" in rows["torn"]
    ended = run("compare old")
    assert ended.code == 1
    assert "next: run its command again (featpipe svm)" in ended.err


def test_a_label_map_that_is_wrong_is_named_with_its_line(run: Any) -> None:
    Path("map.csv").write_text("source_id,source_name,target,why\nn1,one,cat,\nn1,one,dog,\n")
    ended = run("labelmap check map.csv")
    assert ended.code == 1
    assert "map.csv" in ended.err
    assert "line 3" in ended.err


@pytest.mark.parametrize(
    ("line", "others"),
    [("models", ["resnet18", "glyphnet"]), ("datasets", ["stl10", "digits"]), ("--help", ["svm"])],
)
def test_a_package_that_cannot_be_loaded_is_named_among_the_others(
    tmp_path: Path, line: str, others: list[str]
) -> None:
    info = tmp_path / "torn-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torn\nVersion: 1.0\n")
    groups = [f"[featpipe.{kind}s]\nold = torn:Old\n" for kind in ("model", "dataset", "step")]
    (info / "entry_points.txt").write_text("".join(groups))
    (tmp_path / "torn.py").write_text("raise RuntimeError('made for another version')")
    ended = in_process(
        f"from featpipe.cli import main; main([{line!r}])",
        tmp_path,
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(REPOSITORY)]),
        COLUMNS="200",
    )
    assert ended.returncode == 0, ended.stderr
    shown = " ".join(ended.stdout.split())
    assert "'old' cannot be loaded: made for another version" in shown
    assert "torn:Old of the package torn" in shown
    for name in others:
        assert name in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Any, shell: str) -> None:
    ended = run(f"completion {shell}")
    assert ended.code == 0
    assert "_FEATPIPE_COMPLETE" in ended.out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("featpipe ext", "extract"),
        ("featpipe extract --mod", "--model"),
        ("featpipe extract --model cifar_resnet1", "cifar_resnet110"),
        ("featpipe extract --dataset tiny", "tiny-imagenet"),
        ("featpipe extract --dtype ", "float16"),
        ("featpipe store ver", "verify"),
    ],
)
def test_completion_knows_commands_options_and_names(
    tmp_path: Path, words: str, wanted: str
) -> None:
    parts = words.split(" ")
    ended = in_process(
        "from featpipe.cli import main; main([])",
        tmp_path,
        _FEATPIPE_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(len(parts) - 1),
    )
    assert f"plain,{wanted}" in ended.stdout.splitlines(), ended
