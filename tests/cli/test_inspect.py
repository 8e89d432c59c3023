"""Commands that show what there is: stores, label maps; what they write; completion."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests import images
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
    facts = run(f"store info {path} --json").events[-1]
    assert facts["layers"] == {"avgpool": [12, 64]}
    assert facts["classes"] == ["ant", "bee", "cät"]
    described = run(f"store info {path}").out
    assert "12 of folder:photos all, 12 labelled" in described
    assert "ant (4), bee (4), cät (4)" in described
    assert "avgpool 64" in described
    assert "{" not in described, "for people, not a dump"
    assert run(f"store verify {path}") == (0, "1 of 1 stores verified\n", "")
    all_of_them = run("store verify")
    assert all_of_them.code == 1
    assert "1 of 2 stores verified" in all_of_them.out
    assert "x.h5" in all_of_them.err
    assert run(f"store export {path} out/f.npz").code == 0
    assert Path("out/f.npz").exists()
    assert run(f"store export {path} f.xlsx").code == 2
    assert run(f"store export {path} photos/").code == 2
    assert run(f"store export {path} w.safetensors/f.npz").code == 1
    assert run(f"store export {path} /proc/f.npz").code == 1
    assert run(f"store export {path} f.npz --layer avgpol").code == 2


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


# -- results verify, clean, files that are not replaced --------------------------------------------


def test_a_recipe_compares_its_own_results_only(run: Any, evaluated: Path) -> None:
    Path("mine.yaml").write_text(
        f"""
steps:
  - {{step: extract, model: {images.MODEL}, weights: w.safetensors, dataset: folder:photos}}
  - {{step: knn, protocol: holdout:0.5, k: [1]}}
  - step: compare
  - {{step: report, out: reports/own}}
"""
    )
    assert run("run mine.yaml -q").code == 0
    for title, page in (("k nearest", True), ("Nearest class mean", False)):
        assert (title in Path("reports/own.html").read_text()) is page
    ended = run("compare")
    assert "using all 2 results in the workspace (1 of mine, 1 of single commands)" in ended.err
    assert "Nearest class mean" in ended.out
    assert "together" not in run("compare knn centroid").err


def test_clean_lists_first(run: Any, evaluated: Path) -> None:
    assert "nothing to remove" in run("clean").out
    left = evaluated.with_name(".a.json.0123456789abcdef.tmp")
    left.write_bytes(b"torn")
    ended = run("clean --json").events[-1]
    assert [row["path"] for row in ended["table"]] == [str(left)]
    assert "featpipe clean --yes" in ended["message"]
    assert left.exists()
    assert "removed 1 files" in run("clean --yes").out
    assert not left.exists()
    assert evaluated.exists()


@pytest.mark.parametrize("name", ["t.csv", "t.md", "t.tex", "r", "f.npz", "f.csv", "f.parquet"])
def test_a_file_of_others_is_replaced_by_force_only(run: Any, evaluated: Path, name: str) -> None:
    store = next(Path("data/features").rglob("*.h5"))
    if name.startswith("f"):
        pytest.importorskip("pyarrow")
    line = {"t": f"compare --out {name}", "r": f"report --out {name}"}.get(
        name[0], f"store export {store} {name}"
    )
    file = Path("r.html" if name == "r" else name)
    file.write_text("my own work")
    ended = run(line)
    assert ended.code == 2
    assert "featpipe did not write" in ended.err
    assert "--force" in ended.err
    assert file.read_text() == "my own work"
    assert run(f"{line} --force").code == 0
    assert run(line).code == 0  # now it is featpipe's own
    assert file.read_bytes() != b"my own work"


@pytest.mark.parametrize("out", ["/", ".", "..", ".html"])
def test_a_place_that_is_no_file_is_explained(run: Any, evaluated: Path, out: str) -> None:
    ended = run(f"report --out {out}")
    assert ended.code == 2
    assert "does not name a report" in ended.err


def test_exported_cells_are_no_formulas(run: Any, evaluated: Path) -> None:
    assert run("centroid --protocol holdout:0.5 --title =1+1").code == 0
    assert run("compare --out t.csv").code == 0
    assert "'=1+1" in Path("t.csv").read_text()


def test_a_recipe_writes_inside_the_workspace(run: Any, evaluated: Path, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.md"
    Path("link").symlink_to(tmp_path.parent)
    for out in (str(outside), f"../{outside.name}", f"link/{outside.name}"):
        Path("r.yaml").write_text(
            f"steps:\n  - {{step: compare, results: [{evaluated.stem}], out: {out}}}\n"
        )
        ended = run("run r.yaml")
        assert ended.code == 2
        assert "line 2" in ended.err
        assert "outside of the workspace" in ended.err
        assert "--out-anywhere" in ended.err
        assert not outside.exists()
    assert run("run r.yaml --dry-run --out-anywhere").code == 0
    Path("mine.md").write_text("my own work")
    Path("r.yaml").write_text(
        f"steps:\n  - {{step: compare, results: [{evaluated.stem}], out: mine.md, force: true}}\n"
    )
    ended = run("run r.yaml --dry-run")
    assert ended.code == 2
    assert "did not write" in ended.err
    assert run("run r.yaml --dry-run --out-anywhere").code == 0
