"""The comparison table: methods with intervals, paired tests, and published numbers apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featpipe import fingerprint
from featpipe.errors import UnknownNameError, UsageError
from featpipe.evaluate.intervals import wilson
from featpipe.evaluate.significance import compare_all
from featpipe.published import published_datasets, published_rows
from featpipe.registry import did_you_mean
from featpipe.evaluation.result import Result, find_results
from featpipe.steps.old import CompareStep, Context, Outcome
from featpipe.workspace import atomic_write

if TYPE_CHECKING:
    import pandas as pd

BEST = "best"
LIKE_BEST = "not distinguishable from best"
WORSE = "worse than best"
ALONE = "only method on these rows"


@dataclass(frozen=True)
class Comparison:
    """Methods side by side.

    Parameters
    ----------
    rows : list of dict
        One per result, best accuracy first within each group of equal test rows. ``verdict``
        says how it stands to the best method of its group, after Holm's correction.
    pairs : list of dict
        Every pair of methods: difference with interval, exact p-value, adjusted p-value.
    published : list of dict
        Reference rows that others have published on these datasets; never tested against ours.
    """

    rows: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    published: list[dict[str, Any]]

    def table(self) -> pd.DataFrame:
        """Return measured and published rows as one table, ``published`` marking the latter."""
        import pandas as pd  # noqa: PLC0415 - only tables need it

        return pd.DataFrame([*self.rows, *self.published])


def compare(results: Sequence[Result], *, published: bool | Sequence[str] = True) -> Comparison:
    """Compare results; methods are tested against each other where their test rows are equal.

    Parameters
    ----------
    results : sequence of Result
    published : bool or sequence of str
        Whether to add the published numbers of the same datasets, or which to add instead:
        ``"stl10"``, ``"cifar10/resnet9"``.

    Raises
    ------
    UsageError
        If there is nothing to compare, two results have the same name, or published numbers are
        named that are not known.
    """
    if not results:
        raise UsageError("There is no result to compare.", next_step="featpipe results")
    names = [result.name for result in results]
    if len(set(names)) < len(names):
        raise UsageError("The same result was named twice.", got=", ".join(sorted(names)))
    outcomes, groups = {}, {}
    for result in results:
        table = result.predictions()
        ids = table.ids[table.row]
        outcomes[result.name] = (ids, table.correct)
        groups[result.name] = _test_rows(result, table.ids)
    pairs = _pairs_within_groups(outcomes, groups)
    rows = [_row(result, groups[result.name]) for result in results]
    rows.sort(key=lambda row: (_numbered(groups)[row["group"]], -row["accuracy"]))
    _mark(rows, pairs)
    datasets = list(dict.fromkeys(result.dataset["name"] for result in results))
    if isinstance(published, bool):
        reference = [row for name in datasets for row in _published(name)] if published else []
    else:  # they stand beside the results whatever dataset they were published on
        named = [row for name in published for row in _published_as(name)]
        reference = [{**row, "dataset": datasets[0]} for row in named]
    return Comparison(rows, pairs, reference)


def _test_rows(result: Result, ids: Any) -> str:
    """Return a name that two results share exactly when they were tested on the same images."""
    return fingerprint.of_mapping(
        {"dataset": result.dataset["test"]["fingerprint"], "ids": sorted(ids.tolist())}
    )[:8]


def _pairs_within_groups(outcomes: dict[str, Any], groups: dict[str, str]) -> list[dict[str, Any]]:
    """Test all pairs at once, so that the correction counts every test that was made.

    Ids of different datasets may coincide; the group makes them different rows.
    """
    marked = {
        name: (np.char.add(f"{groups[name]}:", ids), correct)
        for name, (ids, correct) in outcomes.items()
    }
    return compare_all(marked)


def _numbered(groups: dict[str, str]) -> dict[str, int]:
    """Return the groups of equal test rows, numbered in order of appearance."""
    return {group: number for number, group in enumerate(dict.fromkeys(groups.values()))}


def _row(result: Result, group: str) -> dict[str, Any]:
    accuracy, metrics = result.summary["accuracy"], result.summary["metrics"]
    spread = result.summary["spread"].get("accuracy") or {}
    seen = result.stores[0]["manifest"]["backbone"] if result.stores else {}
    backbone = result.extra.get("network", seen).get("model")
    return {
        "name": result.name,
        "method": result.title,
        "features": backbone,
        "dataset": result.dataset["name"],
        "protocol": result.protocol["name"],
        "n_test": result.protocol["n_test"],
        "accuracy": accuracy["value"],
        "low": accuracy["low"],
        "high": accuracy["high"],
        "interval": accuracy["method"],
        "models": spread.get("n", 1),
        "sd": spread.get("sd"),
        "balanced_accuracy": metrics.get("balanced_accuracy"),
        "macro_f1": metrics.get("macro_f1"),
        "roc_auc": metrics.get("roc_auc_macro"),
        "train_seconds": result.cost.get("train_seconds"),
        "extract_seconds": result.cost.get("extract_seconds"),
        "parameters_trained": result.cost.get("parameters_trained"),
        "model_bytes": result.cost.get("model_bytes"),
        "chosen": _chosen(result),
        "converged": all(split.get("converged", True) for split in result.splits),
        "seed": result.settings.get("seed"),
        "group": group,
        "verdict": "",
        "published": False,
    }


def _chosen(result: Result) -> str:
    """Return the hyper-parameters that were chosen, each with the number of models it won."""
    counts: dict[str, int] = {}
    for split in result.splits:
        given = {k: v for k, v in split.get("chosen", {}).items() if k not in ("by", "at_edge")}
        text = ", ".join(f"{key}={_short(value)}" for key, value in given.items())
        counts[text] = counts.get(text, 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{text} ×{count}" for text, count in sorted(counts.items()))


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mark(rows: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> None:
    """Say of each method how it stands to the best one on the same test rows."""
    tested = {frozenset((pair["a"], pair["b"])): pair for pair in pairs}
    best: dict[str, dict[str, Any]] = {}
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row["group"]] = sizes.get(row["group"], 0) + 1
        first = best.setdefault(row["group"], row)
        if first is row:
            row["verdict"] = BEST
        else:
            pair = tested[frozenset((first["name"], row["name"]))]
            row["verdict"] = WORSE if pair["distinguishable"] else LIKE_BEST
    for group, row in best.items():
        if sizes[group] == 1:
            row["verdict"] = ALONE


def _published_as(name: str) -> list[dict[str, Any]]:
    """Return the published rows called ``DATASET`` or ``DATASET/ROW``."""
    dataset, _, method = name.partition("/")
    rows = _published(dataset)
    found = [row for row in rows if method in ("", row["name"])]
    if not found:
        known = [f"{dataset}/{row['name']}" for row in rows] or published_datasets()
        raise UnknownNameError(
            f"There are no published numbers called {name!r}.",
            expected=", ".join(known),
            next_step=did_you_mean(name, known).strip() or None,
        )
    return found


def _published(dataset: str) -> list[dict[str, Any]]:
    rows = []
    for known in published_rows(dataset):
        interval = (
            wilson(known.n_correct, known.n_test) if known.n_correct and known.n_test else None
        )
        rows.append(
            {
                "name": known.method,
                "method": known.title,
                "dataset": known.dataset,
                "protocol": known.protocol,
                "n_test": known.n_test,
                "accuracy": known.accuracy,
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
                "interval": interval.method if interval else None,
                "verdict": "published, not measured here",
                "published": True,
            }
        )
    return rows


# -- the command ---------------------------------------------------------------------------------

_SENTENCES = 10


def run_compare(step: CompareStep, context: Context) -> Outcome:
    """Print the comparison and write it where ``--out`` says."""
    results = find_results(context.workspace.results, step.results, step.dataset)
    comparison = compare(results, published=step.reference or step.published)
    paths = () if step.out is None else (step.out,)
    for path in paths:
        write_comparison(comparison, path)
    return Outcome(
        "done",
        "\n".join(["", *_sentences(comparison), *(f"→ {path}" for path in paths)]),
        paths,
        {"rows": comparison.rows, "pairs": comparison.pairs, "published": comparison.published},
        table=display_rows(comparison),
    )


def display_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the table for reading: percentages with two decimals, published rows marked."""

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f}"

    return [
        {
            "method": row["method"],
            "features": row.get("features") or "",
            "protocol": "published" if row["published"] else row["protocol"],
            "n": row["n_test"] or "",
            "accuracy %": percent(row["accuracy"]),
            "95 % interval": f"{percent(row['low'])}–{percent(row['high'])}" if row["low"] else "",
            "± sd": percent(row.get("sd")),
            "macro f1 %": percent(row.get("macro_f1")),
            "chosen": row.get("chosen") or "",
            "verdict": row["verdict"] + ("" if row.get("converged", True) else "; not converged"),
        }
        for row in [*comparison.rows, *comparison.published]
    ]


def _sentences(comparison: Comparison) -> list[str]:
    """Say each paired test in words; of many, only those against the best method."""
    tested = [pair for pair in comparison.pairs if pair["reason"] is None]
    if len(tested) <= _SENTENCES:
        return [_sentence(pair, comparison) for pair in tested]
    best = {row["name"] for row in comparison.rows if row["verdict"] == BEST}
    told = [pair for pair in tested if best & {pair["a"], pair["b"]}]
    rest = f"({len(tested) - len(told)} further pairs were tested: see --json or the report)"
    return [*(_sentence(pair, comparison) for pair in told), rest]


def _sentence(pair: dict[str, Any], comparison: Comparison) -> str:
    titles = {row["name"]: f"{row['method']} ({row['features']})" for row in comparison.rows}
    verdict = "differ" if pair["distinguishable"] else "are not distinguishable"
    return (
        f"{titles[pair['a']]} and {titles[pair['b']]} {verdict}: difference "
        f"{100 * pair['difference']:+.2f} points [{100 * pair['ci_low']:+.2f}, "
        f"{100 * pair['ci_high']:+.2f}], p = {pair['p_value']:.3g}, adjusted "
        f"{pair['p_adjusted']:.3g} ({pair['method']}, {pair['n']} rows)"
    )


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write all columns as ``.csv``, or the table for reading as ``.md`` or ``.tex``.

    Raises
    ------
    UsageError
        For any other ending.
    """
    import pandas as pd  # noqa: PLC0415 - only tables need it

    shown = pd.DataFrame(display_rows(comparison))
    escaped = shown.rename(columns=lambda name: name.replace("%", r"\%").replace("±", r"$\pm$"))
    writers = {
        ".csv": lambda: comparison.table().to_csv(index=False),
        ".md": lambda: shown.to_markdown(index=False, disable_numparse=True) + "\n",
        ".tex": lambda: (
            escaped.style.hide(axis="index").format(escape="latex").to_latex(hrules=True)
        ),
    }
    if path.suffix not in writers:
        raise UsageError(
            f"Cannot write a table as {path.name!r}.", expected="a name in .csv, .md or .tex"
        )
    text = writers[path.suffix]()
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
