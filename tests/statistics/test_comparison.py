"""The comparison: verdicts after Holm, what is not compared, and the table in four forms."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from featpipe.cli import main
from featpipe.errors import ResultError, UsageError
from featpipe.evaluation.assemble import save_result
from featpipe.evaluation.result import PredictionTable, Result
from featpipe.statistics.comparison import (
    ALONE,
    BEST,
    HIGHEST,
    SELECTION,
    TIED,
    compare,
    display_rows,
    run_compare,
    write_comparison,
)
from featpipe.statistics.step import Compare
from featpipe.statistics.verdicts import EQUIVALENT, UNDECIDED, WORSE, holm
from featpipe.steps import Context
from featpipe.workspace import Workspace


def trained_on(sets):
    """What a result says of the training sets of its models."""
    about = {"splits": list(range(len(sets))), "sets": sets}
    return {**about, "rows": 100, "overlap": 0.0, "own_pool": False}


MANIFEST = {"backbone": {"model": "toynet"}, "dtype": "float32"}


def result_of(folder, name, right, *, dataset="toy", rows="test", chosen=({"c": 0.1},), **more):
    """Write a result whose predictions are right where ``right`` says."""
    right = np.asarray(right, dtype=bool)
    table = PredictionTable(
        ids=np.array([f"{i}.png" for i in range(len(right))]),
        true=np.zeros(len(right), dtype=np.int64),
        row=np.arange(len(right)),
        split=np.zeros(len(right), dtype=np.int64),
        predicted=np.where(right, 0, 1),
    )
    accuracy = {"value": float(right.mean()), "low": 0.1, "high": 0.9, "method": "Wilson"}
    result = Result(
        method=name,
        title=f"Method {name}",
        key=name * 12,
        dataset={"name": dataset, "classes": ["a", "b"], "other": False,
                 "test": {"fingerprint": rows}},
        settings={"seed": 0},
        protocol={
            "name": "split",
            "splits": len(chosen),
            "n_test": len(right),
            "training": trained_on(["all"] * len(chosen)),
        },
        splits=[{"chosen": dict(one), "converged": more.get("converged", True)} for one in chosen],
        summary={"accuracy": accuracy, "metrics": {"macro_f1": 0.5}, "spread": {}},
        cost={},
        stores=[{"layer": "pool", "manifest": MANIFEST}],
        environment={},
        created="2024-01-01T00:00:00+00:00",
    )  # fmt: skip
    save_result(result, folder / f"{name}.json", table)
    return result


def pattern(n: int, wrong: range) -> np.ndarray:
    """Answers that are right but on the rows in ``wrong``."""
    right = np.ones(n, dtype=bool)
    right[list(wrong)] = False
    return right


@pytest.fixture
def three(tmp_path):
    """The best, one that cannot be told from it, one that can."""
    return [
        result_of(tmp_path, "a", pattern(100, range(5))),
        result_of(tmp_path, "b", pattern(100, range(2, 9))),
        result_of(tmp_path, "c", pattern(100, range(40))),
    ]


def test_verdicts_compare_each_with_the_best(three):
    comparison = compare(three[::-1])
    assert [row["name"] for row in comparison.rows] == ["a", "b", "c"]
    assert [row["verdict"] for row in comparison.rows] == [HIGHEST, UNDECIDED, WORSE]
    assert [row["verdict_methods"] for row in comparison.rows] == [None, None, None]


def test_ties_are_ties_in_the_order_of_their_titles(tmp_path):
    results = [
        result_of(tmp_path, "b", pattern(100, range(5))),
        result_of(tmp_path, "a", pattern(100, range(3, 8))),
        result_of(tmp_path, "c", pattern(100, range(40))),
    ]
    for order in (results, results[::-1]):
        rows = compare(order).rows
        assert [(row["name"], row["verdict"]) for row in rows] == [
            ("a", TIED), ("b", TIED), ("c", WORSE),
        ]  # fmt: skip


def test_the_best_is_called_so_only_if_every_other_is_worse(tmp_path):
    results = [
        result_of(tmp_path, "a", pattern(100, range(5))),
        result_of(tmp_path, "b", pattern(100, range(40))),
    ]
    assert compare(results).rows[0]["verdict"] == BEST
    results.append(result_of(tmp_path, "c", pattern(100, range(6))))
    assert compare(results).rows[0]["verdict"] == HIGHEST


def test_what_is_equivalent_is_the_users_choice(tmp_path):
    results = [
        result_of(tmp_path, name, pattern(1000, range(first, first + 50)))
        for name, first in [("a", 0), ("b", 4)]
    ]
    results[0] = result_of(tmp_path, "a", pattern(1000, range(49)))
    assert [compare(results, margin=m).rows[1]["verdict"] for m in (0.1, 2)] == [
        UNDECIDED, EQUIVALENT,
    ]  # fmt: skip


def test_folds_answer_for_the_methods_too(tmp_path):
    rng = np.random.default_rng(0)
    results = []
    for name, share in [("a", 0.95), ("b", 0.8), ("c", 0.7)]:
        right = rng.random((4, 200)) < (share if name != "c" else 0.75)
        result = result_of(tmp_path, name, right[0], chosen=[{}] * 4)
        table = PredictionTable(
            ids=np.array([f"{i}.png" for i in range(200)]),
            true=np.zeros(200, dtype=np.int64),
            row=np.tile(np.arange(200), 4),
            split=np.repeat(np.arange(4), 200),
            predicted=np.where(right.ravel(), 0, 1),
        )
        result.summary["accuracy"]["value"] = float(right.mean())
        sets = [f"{name == 'c'}{i}" for i in range(4)]  # c was trained on other images
        result.protocol["training"] = trained_on(sets)
        save_result(result, tmp_path / f"{name}.json", table)
        results.append(result)
    comparison = compare(results)
    assert [row["verdict_methods"] for row in comparison.rows] == [HIGHEST, WORSE, None]
    assert [row["verdict_models"] for row in comparison.rows] == [BEST, WORSE, WORSE]
    pair = comparison.pairs[0]
    assert pair["methods"]["method"] == "t test over 4 training sets × 200 rows"
    assert pair["methods"]["p_value"] > pair["models"]["p_value"]
    assert comparison.notes[0].startswith(
        "Whether other training images would change the order is untested for 2 of 3 pairs: "
    )
    flat = comparison.pair_table()
    assert flat["methods_verdict"].tolist()[0] == "better"


def test_an_accuracy_that_its_predictions_contradict_is_refused(three):
    three[0].summary["accuracy"]["value"] = 0.42
    with pytest.raises(ResultError, match="not that of its predictions"):
        compare(three)


def test_p_values_are_mcnemars_corrected_by_holm(three):
    pairs = {(p["a"], p["b"]): p for p in compare(three).pairs}
    right = {r.name: r.predictions().correct for r in three}
    only = [((right[a] & ~right[b]).sum(), (right[b] & ~right[a]).sum()) for a, b in pairs]
    plain = [stats.binomtest(one, one + two).pvalue for one, two in only]
    models = [pair["models"] for pair in pairs.values()]
    assert [one["p_value"] for one in models] == pytest.approx(plain)
    assert [one["p_adjusted"] for one in models] == pytest.approx(holm(plain)[0])
    assert pairs["a", "b"]["models"]["verdict"] == UNDECIDED


def test_the_correction_can_take_a_difference_back(tmp_path):
    results = [
        result_of(tmp_path, "a", pattern(60, range(0))),
        result_of(tmp_path, "b", pattern(60, range(6))),  # p = 0.031 on its own
    ]
    assert compare(results).rows[1]["verdict"] == WORSE
    results.append(result_of(tmp_path, "c", pattern(60, range(1, 6))))
    results.append(result_of(tmp_path, "d", pattern(60, range(2, 6))))
    assert {row["verdict"] for row in compare(results).rows[1:]} == {UNDECIDED}


@pytest.mark.parametrize("other", [{"rows": "elsewhere"}, {"dataset": "zoo", "rows": "zoo"}])
def test_different_test_rows_are_not_compared(tmp_path, other):
    one = result_of(tmp_path, "a", pattern(50, range(1)))
    two = result_of(tmp_path, "b", pattern(50, range(40)), **other)
    comparison = compare([one, two])
    assert [row["verdict"] for row in comparison.rows] == [ALONE, ALONE]
    (pair,) = comparison.pairs
    assert pair["models"] is None
    assert pair["reason"] == "not comparable: different test rows"
    said = [note for note in comparison.notes if "they are not compared" in note]
    assert len(said) == ("dataset" not in other)
    assert all("50 images of toy, extracted apart from the 50 of Method a" in note for note in said)


def test_only_a_table_of_several_datasets_has_a_column_of_them(three, tmp_path):
    other = result_of(tmp_path, "z", pattern(50, range(1)), dataset="zoo", rows="zoo")
    assert "dataset" not in display_rows(compare(three))[0]
    rows = display_rows(compare([*three, other]))
    assert {row["dataset"] for row in rows} == {"toy", "zoo"}


def test_leaks_are_in_the_table_and_its_notes(tmp_path):
    clean = result_of(tmp_path, "a", pattern(100, range(5)))
    leaky = result_of(tmp_path, "b", pattern(100, range(9)))
    assert "without copies %" not in display_rows(compare([clean, leaky]))[0]
    interval = {"low": 0.8, "high": 0.95}
    account = {"test_images": 100, "leaked": 20, "accuracy": {"value": 0.91, **interval}}
    leaky.extra["leaks"] = account | {"accuracy_without": {"value": 0.8875, **interval}}
    comparison = compare([clean, leaky])
    assert comparison.notes[0].startswith(
        "20 of 100 test images (20.0 %) are exact copies of training images (Method b). "
    )
    shown = {row["method"]: row["without copies %"] for row in display_rows(comparison)}
    assert (shown["Method a"], shown["Method b"]) == ("", "88.75")
    assert comparison.table().set_index("method").leaked["Method b"] == 20


def test_part_of_the_test_rows_is_other_test_rows(tmp_path):
    one = result_of(tmp_path, "a", pattern(50, range(1)))
    two = result_of(tmp_path, "b", pattern(40, range(30)))
    comparison = compare([one, two])
    assert {row["verdict"] for row in comparison.rows} == {ALONE}
    (note,) = (note for note in comparison.notes if "they are not compared" in note)
    assert "tested on 40 images of toy, 40 of which are among the 50 of Method a" in note


def test_each_group_of_test_rows_has_its_own_best(tmp_path):
    results = [
        result_of(tmp_path, name, pattern(50, range(wrong)), rows=rows)
        for name, wrong, rows in [("a", 1, "x"), ("b", 30, "x"), ("c", 20, "y"), ("d", 45, "y")]
    ]
    verdicts = {row["name"]: row["verdict"] for row in compare(results).rows}
    assert verdicts == {"a": BEST, "b": WORSE, "c": BEST, "d": WORSE}


def test_published_numbers_are_set_apart_and_never_tested(tmp_path):
    result = result_of(tmp_path, "a", pattern(50, range(1)), dataset="stl10")
    comparison = compare([result])
    assert len(comparison.published) >= 3
    assert comparison.pairs == []
    assert all(row["published"] for row in comparison.published)
    assert {row["verdict"] for row in comparison.published} == {"published, not measured here"}
    assert comparison.table()["published"].tolist() == [False] + [True] * len(comparison.published)
    assert compare([result], published=False).published == []
    reference = compare([result], published=["cifar10/resnet9", "two-class"]).published
    assert {row["dataset"] for row in reference} == {"stl10"}  # shown beside these results
    assert [row["name"] for row in reference] == ["resnet9", "resnet34_frozen"]
    shown = display_rows(comparison)
    assert [row["protocol"] for row in shown[1:]] == ["published"] * len(comparison.published)


def test_what_was_chosen_is_counted_over_the_models(tmp_path):
    chosen = [{"c": 0.1, "by": "3 folds"}, {"c": 0.1, "at_edge": True}, {"c": 0.01}]
    result = result_of(tmp_path, "a", pattern(9, range(1)), chosen=chosen)
    assert compare([result]).rows[0]["chosen"] == "c=0.01 ×1; c=0.1 ×2"
    head = result_of(tmp_path, "b", pattern(9, range(1)), chosen=[{"lr": 1e-3, "loss": "focal"}])
    assert compare([head]).rows[0]["chosen"] == "lr=0.001, loss=focal"


def test_a_solver_that_did_not_converge_is_marked_in_the_table(tmp_path):
    result = result_of(tmp_path, "a", pattern(9, range(1)), converged=False)
    comparison = compare([result])
    assert comparison.rows[0]["converged"] is False
    assert display_rows(comparison)[0]["note"] == "not converged"


def test_nothing_to_compare_and_the_same_twice_are_refused(three):
    with pytest.raises(UsageError, match="list of results is empty"):
        compare([])
    with pytest.raises(UsageError, match="named twice"):
        compare([three[0], three[0]])


# -- files -----------------------------------------------------------------------------------------


def test_csv_holds_every_column_of_every_row(three, tmp_path):
    comparison = compare(three)
    write_comparison(comparison, tmp_path / "out" / "table.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text())))
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert [float(row["accuracy"]) for row in rows] == [0.95, 0.93, 0.6]
    assert {"low", "high", "chosen", "verdict", "published"} <= set(rows[0])


def test_markdown_is_the_table_for_reading(three, tmp_path):
    write_comparison(compare(three), tmp_path / "table.md")
    table, notes, mark = (tmp_path / "table.md").read_text().strip().split("\n\n")
    assert notes.startswith("* Equivalent within 1 point: see --margin.")
    assert SELECTION in notes
    assert mark == "<!-- written by featpipe compare -->"  # so that it is known as featpipe's own
    header, rule, *rows = table.splitlines()
    assert set(rule) <= set("|:-")
    assert "accuracy %" in header
    assert len(rows) == 3
    assert "95.00" in rows[0]
    assert "10.00–90.00" in rows[0]


def test_latex_escapes_what_it_must(tmp_path):
    result = result_of(tmp_path, "a", pattern(9, range(1)))
    result.title = "100% & a_b"
    write_comparison(compare([result]), tmp_path / "table.tex")
    text = (tmp_path / "table.tex").read_text()
    assert r"100\% \& a\_b" in text
    assert r"\toprule" in text
    assert r"accuracy \%" in text


def test_another_ending_is_refused(three, tmp_path):
    with pytest.raises(UsageError, match="Cannot write a table") as caught:
        write_comparison(compare(three), tmp_path / "table.xlsx")
    assert caught.value.details["expected"] == "a name in .csv, .md or .tex"


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path):
    folder = tmp_path / "data" / "results"
    folder.mkdir(parents=True)
    result_of(folder, "a", pattern(100, range(5)))
    result_of(folder, "b", pattern(100, range(2, 9)))
    result_of(folder, "c", pattern(100, range(40)))
    return tmp_path


def test_the_command_says_each_test_in_words(workspace):
    outcome = run_compare(Compare(out=workspace / "t.md"), Context(Workspace(workspace)))
    assert len(outcome.table) == 3
    said = outcome.message.split("Method a against ")
    assert said[1].startswith("Method b, 100 test images:\n  these models: undecided: +2.00")
    assert "test images would decide it" in said[1]
    assert said[2].startswith("Method c, 100 test images:\n  these models: better: +35.00")
    assert outcome.message.count("McNemar exact") == 3
    assert "would change the order is untested: one training set" in said[2]
    assert "--protocol folds or kfold:5 would answer it" in said[2]
    assert SELECTION in said[2]
    assert outcome.paths == (workspace / "t.md",)
    assert (workspace / "t.md").exists()


def test_of_many_pairs_only_those_with_the_best_are_said(workspace):
    for name in "defg":
        result_of(workspace / "data" / "results", name, pattern(100, range(50)))
    message = run_compare(Compare(), Context(Workspace(workspace))).message
    assert message.count("Method a") == 6
    assert "15 further pairs were tested" in message


def test_results_are_named_by_name_or_path_and_misspellings_are_met_with_help(workspace):
    path = str(workspace / "data" / "results" / "b.json")
    outcome = run_compare(Compare(results=("a", path)), Context(Workspace(workspace)))
    assert {row["name"] for row in outcome.facts["rows"]} == {"a", "b"}
    with pytest.raises(ResultError, match="no result 'ab'"):
        run_compare(Compare(results=("ab",)), Context(Workspace(workspace)))
    with pytest.raises(ResultError, match="no result on 'zoo'"):
        run_compare(Compare(dataset="zoo"), Context(Workspace(workspace)))


def test_on_the_terminal_and_as_json(workspace, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")

    def run(*options):
        with pytest.raises(SystemExit) as ended:
            main(["compare", "--workspace", str(workspace), *options])
        assert ended.value.code == 0
        return capsys.readouterr().out

    told = run()
    assert "undecided" in told
    assert "95.00" in told
    lines = [json.loads(line) for line in run("--json").splitlines()]
    (facts,) = [line for line in lines if "rows" in json.dumps(line)][-1:]
    assert "p_adjusted" in json.dumps(facts)
