"""``featpipe results``: listed, shown, removed and verified."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from featpipe.evaluation.result import Result


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


def test_a_result_is_shown_and_removed_by_a_part_of_its_name(run: Any, evaluated: Path) -> None:
    later = Path(run("centroid --protocol holdout:0.5 --seed 1 --json").events[-1]["paths"][0])
    os.utime(later, (later.stat().st_mtime + 10,) * 2)
    shown = run("results show centroid").out
    assert f"name                {later.stem}\n" in shown
    assert "seed 1" in shown
    assert str(later) in shown
    assert run(f"results show {evaluated.stem} --json").events[-1]["method"] == "centroid"
    missing = run("results show centriod")
    assert (missing.code, "did you mean 'centroid'?" in missing.err) == (1, True)
    before = {path for path in Path("data").rglob("*") if later.stem in path.name}
    assert len(before) == 3
    ended = run("results rm centroid")
    assert ended == (0, f"removed {later.stem}\n3 files\n", "")
    assert not any(path.exists() for path in before)
    assert run("results verify") == (0, "1 of 1 results verified\n", "")
    assert evaluated.exists()
    Path("data/results/torn.json").write_text("{")
    assert run("results rm torn") == (0, "removed torn\n1 files\n", "")
    Path("elsewhere.json").write_text(evaluated.read_text())
    assert "not one of the workspace" in run("results rm elsewhere.json").err
    assert Path("elsewhere.json").exists()


def test_a_name_that_fits_several_datasets_removes_nothing(run: Any, evaluated: Path) -> None:
    result = Result.load(evaluated)
    result.dataset["name"] = "folder:others"
    others = evaluated.with_name(evaluated.name.replace("photos", "others"))
    result.save(others)
    ended = run("results rm centroid")
    assert ended.code == 2
    for path in (evaluated, others):
        assert path.exists()
        assert f"{path.stem} (folder:" in ended.err
    assert "say which: featpipe results rm " in ended.err
    assert run("results rm others").out.startswith(f"removed {others.stem}\n")
    assert run("results rm centroid").out.startswith(f"removed {evaluated.stem}\n")


def test_a_cross_validated_result_is_shown_in_lines_of_its_own(run: Any, extract: str) -> None:
    run(extract)
    assert run("knn --protocol kfold:4 --k 1,2,3 --json").code == 0
    shown = " ".join(run("results show knn").out.split())
    assert "protocol kfold:4, 4 models, 12 test images" in shown
    assert "points between models" in shown
    assert re.search(r"chosen k \d \(by .*?\): \d of 4 models", shown)


def test_results_of_one_title_are_told_apart_wherever_they_are_listed(
    run: Any, evaluated: Path
) -> None:
    other = Path(run("centroid --protocol holdout:0.5 --seed 1 --json").events[-1]["paths"][0])
    wanted = {
        evaluated.stem: "Nearest class mean",
        other.stem: "Nearest class mean, seed 1",
    }
    listed = run("results --json").events[-1]["table"]
    assert {row["name"]: row["method"] for row in listed} == wanted
    compared = run("compare --out all.csv --json").events[-1]
    assert {row["name"]: row["method"] for row in compared["rows"]} == wanted
    assert sorted(row["method"] for row in compared["table"]) == sorted(wanted.values())
    assert all(title in Path("all.csv").read_text() for title in wanted.values())


def test_verify_names_what_was_changed(run: Any, evaluated: Path) -> None:
    assert run("report").code == 0
    assert run("results verify") == (0, "2 of 2 results and reports verified\n", "")
    assert run(f"results verify {evaluated.stem}").code == 0
    assert run("results verify nonesuch").code == 1
    content = json.loads(evaluated.read_text())
    content["summary"]["accuracy"]["value"] = 0.42
    evaluated.write_text(json.dumps(content))
    table = next(Path("reports").glob("*-tables/*.csv"))
    table.write_text(table.read_text() + "\n")
    ended = run("results verify")
    assert ended.code == 1
    assert "0 of 2 results and reports verified" in ended.out
    assert "summary.accuracy.value: 0.42 stated" in ended.err
    assert table.name in ended.err
    damaged = run("results verify --json").events[-1]["damaged"]
    assert damaged == [str(evaluated), "reports/folder-photos.html"]
    for command in ("report", "compare", f"predict {evaluated.stem} photos", "centroid"):
        ended = run(command if command != "centroid" else "centroid --protocol holdout:0.5")
        assert ended.code == 1, command
        assert "changed after it was written" in ended.err
        assert evaluated.name in ended.err
    assert "changed after it was written" in run("results").out
