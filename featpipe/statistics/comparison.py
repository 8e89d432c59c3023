"""The comparison table: methods with intervals, paired tests, and published numbers apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featpipe import fingerprint
from featpipe.errors import UsageError
from featpipe.evaluation.leaks import DROP_LEAKS, count_of_leaks
from featpipe.evaluation.result import Result, as_results, find_results
from featpipe.evaluation.titles import unique_titles
from featpipe.notebook import html_table
from featpipe.statistics.intervals import wilson
from featpipe.statistics.paired_tests import SMALLEST_P, Answers
from featpipe.statistics.published import PublishedRow, find_published, published_rows
from featpipe.statistics.step import Compare
from featpipe.statistics.verdicts import BETTER, EQUIVALENT, UNDECIDED, WORSE, compare_all, p_text
from featpipe.steps import Context, Outcome
from featpipe.steps.options import as_written
from featpipe.workspace import atomic_write, neutralised, refuse_foreign

QUESTIONS = {"models": "these models", "methods": "the methods"}
BEST, TIED, HIGHEST = "best", "tied best", "highest"
LEADING = (BEST, TIED, HIGHEST)  # verdicts on the first of several methods
ALONE = "only method on these rows"
SELECTION = (
    "The best of several accuracies is usually too high: if you choose by this table, test your "
    "choice again on images that played no part in it."
)

_WRITTEN = "written by featpipe compare"
_COSTS = (
    "total_seconds", "extract_seconds", "search_seconds", "fit_seconds", "predict_seconds",
    "parameters_trained", "model_bytes",
)  # fmt: skip
_MAX_SENTENCES = 10


@dataclass(frozen=True, repr=False)
class Comparison:
    """Methods side by side.

    ``rows`` has one per result, highest accuracy first within each group of equal test rows.
    ``verdict_models`` and ``verdict_methods`` compare it with the first of its group; the latter
    is None if the results cannot answer it, and ``verdict`` is the stronger statement, ``about``
    the methods or else these models. ``pairs`` has every pair of methods with both verdicts, as
    returned by :func:`~featpipe.statistics.verdicts.compare_all`. ``published`` are reference rows
    of others, never tested against ours, ``notes`` what a reader of the verdicts must know,
    ``margin`` the points within which methods are equivalent.
    """

    rows: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    published: list[dict[str, Any]]
    notes: list[str]
    margin: float
    apart: Sequence[str] = ()  # the notes on what is not compared, and why

    def __repr__(self) -> str:
        return f"Comparison({len(self.rows)} methods, {len(self.published)} published)"

    def _repr_html_(self) -> str:
        return html_table("Comparison", display_rows(self), footnotes(self))

    def table(self) -> pd.DataFrame:
        """Return measured and published rows as one table, the latter marked in ``published``."""
        return pd.DataFrame([*self.rows, *self.published])

    def pair_table(self) -> pd.DataFrame:
        """Return a row for each pair, with the verdicts in columns such as ``methods_p_value``."""
        return pd.json_normalize(self.pairs, sep="_")


def compare(
    results: Sequence[Result] | Result,
    *,
    published: bool | Sequence[str] = True,
    margin: float = 1.0,
) -> Comparison:
    """Compare results; methods are tested against each other if they have the same test rows.

    Parameters
    ----------
    results : sequence of Result, or Result
    published : bool or sequence of str
        Whether to add the published numbers of the same datasets, or which to add instead:
        ``"stl10"``, ``"cifar10/resnet9"``.
    margin : float
        Differences smaller than this many points of accuracy do not matter to you.

    Raises
    ------
    UsageError
        If there is nothing to compare, two results have the same name, or the published numbers
        named do not exist.
    """
    results = sorted(as_results(results), key=lambda result: result.name)
    names = [result.name for result in results]
    if len(set(names)) < len(names):
        raise UsageError("The same result was named twice.", got=", ".join(names))
    rows, answers, tested = [], {}, {}
    for result in results:
        table = result.predictions()
        # Two results are in one group if and only if they were tested on the same images.
        images = result.dataset["test"]["fingerprint"]
        ids = sorted(table.ids.tolist())
        group = fingerprint.of_mapping({"dataset": images, "ids": ids})[:8]
        tested[group] = {(images, name) for name in ids}
        # Ids of different datasets may coincide; the group makes them different rows.
        each = np.char.add(f"{group}:", table.ids)[table.row]
        training = result.protocol["training"]
        answers[result.name] = Answers.of(each, table.correct, table.split, training)
        rows.append(_row(result, group))
    titles = unique_titles(results, rows, ("dataset", "features", "protocol"))
    rows.sort(key=lambda row: ([*tested].index(row["group"]), *_rank(row)))
    title_of = dict(zip(names, titles, strict=True))
    for row in rows:
        row["method"] = title_of[row["name"]]
    # Pairs are in the order of the table, so the first of a pair is never the lower one. All are
    # tested together, because Holm's correction counts every test.
    pairs = compare_all({row["name"]: answers[row["name"]] for row in rows}, margin / 100)
    by_names = {(pair["a"], pair["b"]): pair for pair in pairs}
    for _, members in groupby(rows, key=lambda row: row["group"]):
        _judge_group(list(members), by_names, margin)
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    if isinstance(published, bool):
        shown = [(one, name) for name in datasets * published for one in published_rows(name)]
    else:  # rows asked for by name are shown beside the results, whatever their dataset
        shown = [(one, datasets[0]) for name in published for one in find_published(name)]
    reference = [_published_row(one, dataset) for one, dataset in shown]
    apart = _apart_notes(rows, tested)
    leaks, seen = _leak_notes(results, title_of), contamination_notes(results)
    notes = [*leaks, *scope_notes(pairs), *apart, *seen]
    return Comparison(rows, pairs, reference, notes, margin, apart)


def _judge_group(
    rows: Sequence[dict[str, Any]], pairs: Mapping[tuple[str, str], dict[str, Any]], margin: float
) -> None:
    """Write into the rows of a group how they compare with the first; None if unknown."""
    first, *others = rows
    for question in QUESTIONS:
        column = f"verdict_{question}"
        for row in others:
            test = pairs[first["name"], row["name"]][question]
            row[column] = test and (WORSE if test["verdict"] == BETTER else test["verdict"])
            if test and _rank(row)[0] == _rank(first)[0]:
                row[column] = TIED
        found = {row[column] for row in others}
        if not others:
            first[column] = ALONE if question == "models" else None
        elif found == {None}:
            first[column] = None
        else:
            first[column] = TIED if TIED in found else BEST if found == {WORSE} else HIGHEST
    for row in rows:
        row["verdict"] = row["verdict_methods"] or row["verdict_models"]
        row["about"] = QUESTIONS["methods" if row["verdict_methods"] else "models"]
        row["margin"] = margin


def _rank(row: dict[str, Any]) -> tuple[float, str, str]:
    """Sort key: highest accuracy first; those that differ only by rounding, by title."""
    return -round(row["accuracy"], 12), row["method"], row["name"]


def scope_notes(pairs: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the verdicts of these pairs leave open, and what would answer it."""
    tested = [pair for pair in pairs if pair["models"]]
    notes = [SELECTION] if tested else []
    if untested := [pair["reason_methods"] for pair in tested if not pair["methods"]]:
        some = f" for {len(untested)} of {len(tested)} pairs" * (len(untested) < len(tested))
        note = f"Whether other training images would change the order is untested{some}"
        notes.insert(0, f"{note}: {'; '.join(dict.fromkeys(untested))}.")
    return notes


def _apart_notes(
    rows: Sequence[dict[str, Any]], tested: Mapping[str, set[tuple[str, str]]]
) -> list[str]:
    """Return which methods were tested on other images than the first of the same dataset."""
    notes: list[str] = []
    first_of: dict[str, dict[str, Any]] = {}
    for group, members in groupby(rows, key=lambda row: row["group"]):
        row, *others = members
        first = first_of.setdefault(row["dataset"], row)
        mine, theirs = tested[group], tested[first["group"]]
        if mine == theirs:
            continue
        more = f" and {len(others)} more" if others else ""
        reason = f"{len(mine & theirs)} of which are among"
        advice = "with one --protocol and --seed"
        if {images for images, _ in mine} != {images for images, _ in theirs}:
            reason, advice = "extracted apart from", "on one extraction"
        were = "were" if others else "was"
        notes.append(
            f"{row['method']} ({row['protocol']}){more} {were} tested on {len(mine)} images of "
            f"{row['dataset']}, {reason} the {len(theirs)} of {first['method']} "
            f"({first['protocol']}), so they are not compared; evaluate both {advice}."
        )
    return notes


def _leak_notes(results: Iterable[Result], titles: Mapping[str, str]) -> list[str]:
    """Return which results have copies of training images among their test images."""
    leaky: dict[str, list[str]] = {}
    for result in results:
        if (account := result.extra.get("leaks")) and account["leaked"]:
            leaky.setdefault(count_of_leaks(account), []).append(titles[result.name])
    return [f"{count} ({', '.join(named)}). {DROP_LEAKS}" for count, named in leaky.items()]


def contamination_notes(results: Iterable[Result]) -> list[str]:
    """Return the distinct notes on backbones that may have seen test images in training."""
    said = (result.extra.get("contamination") for result in results)
    return [note for note in dict.fromkeys(said) if note]


def _row(result: Result, group: str) -> dict[str, Any]:
    accuracy, metrics = result.summary["accuracy"], result.summary["metrics"]
    spread = result.summary["spread"].get("accuracy") or {}
    methods = result.summary.get("accuracy_methods") or {}
    backbone = result.stores[0]["manifest"]["backbone"] if result.stores else {}
    leaks = result.extra.get("leaks") or {}
    left_over = leaks.get("accuracy_without") or {}
    trained = result.protocol["training"]
    headline = result.splits if trained is None else [result.splits[i] for i in trained["splits"]]
    chosen: Counter[str] = Counter()  # the number of models for which each setting was chosen
    for split in headline:
        settings = {k: v for k, v in split.get("chosen", {}).items() if k not in ("by", "at_edge")}
        chosen[", ".join(f"{key}={as_written(value)}" for key, value in settings.items())] += 1
    counted = "; ".join(f"{text} ×{count}" for text, count in sorted(chosen.items()))
    return {
        "name": result.name,
        "method": result.title,
        "features": result.extra.get("network", backbone).get("model"),
        "dataset": result.dataset["name"],
        "protocol": result.protocol["name"],
        "n_test": result.protocol["n_test"],
        "accuracy": accuracy["value"],
        **{limit: accuracy[limit] for limit in ("low", "high")},
        "interval": accuracy["method"],
        "models": spread.get("n", 1),
        **{name: spread.get(name) for name in ("sd", "training_sd", "few_rows_sd")},
        **{f"methods_{limit}": methods.get(limit) for limit in ("low", "high")},
        **{name: metrics.get(name) for name in ("balanced_accuracy", "macro_f1")},
        "roc_auc": metrics.get("roc_auc_macro"),
        **{
            f"{name.removesuffix('_macro')}_{limit}": interval[limit]
            for name, interval in result.summary.get("intervals", {}).items()
            for limit in ("low", "high")
        },
        **{name: result.cost.get(name) for name in _COSTS},
        "chosen": next(iter(chosen)) if len(chosen) == 1 else counted,
        "leaked": leaks.get("leaked"),  # test images that are copies of training images
        **{f"without_leaks_{name}": left_over.get(name) for name in ("value", "low", "high")},
        "converged": all(split.get("converged", True) for split in headline),
        "seed": result.settings.get("seed"),
        "group": group,
        "verdict": "",
        "published": False,
    }


def _published_row(known: PublishedRow, dataset: str) -> dict[str, Any]:
    interval = wilson(known.n_correct, known.n_test) if known.n_correct and known.n_test else None
    return {
        "name": known.method,
        "method": known.title,
        "dataset": dataset,
        **{name: getattr(known, name) for name in ("protocol", "note", "n_test", "accuracy")},
        "low": interval and interval.low,
        "high": interval and interval.high,
        "interval": interval and interval.method,
        "verdict": "published, not measured here",
        "published": True,
    }


# The table on the terminal and in files.


def display_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the table for reading: percentages with two decimals, published rows marked."""

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f}"

    every = [*comparison.rows, *comparison.published]
    several = len({row["dataset"] for row in every}) > 1
    leaky = any(row.get("leaked") for row in every)
    return [
        {
            "method": row["method"],
            **({"dataset": row["dataset"]} if several else {}),
            "features": row.get("features") or "",
            "protocol": "published" if row["published"] else row["protocol"],
            "n": row["n_test"] or "",
            "accuracy %": percent(row["accuracy"]),
            "95 % interval": "–".join(filter(None, (percent(row["low"]), percent(row["high"])))),
            **({"without copies %": percent(row.get("without_leaks_value"))} if leaky else {}),
            "± sd": percent(row.get("sd")),
            "balanced %": percent(row.get("balanced_accuracy")),
            "macro f1 %": percent(row.get("macro_f1")),
            "chosen": row.get("chosen") or "",
            QUESTIONS["models"]: row.get("verdict_models") or row["verdict"],
            QUESTIONS["methods"]: row.get("verdict_methods") or "",
            "note": "" if row.get("converged", True) else "not converged",
        }
        for row in every
    ]


def footnotes(comparison: Comparison) -> list[str]:
    """Return the notes that belong to a table of verdicts."""
    margin = equivalent_within(comparison.margin).capitalize()
    return [f"{margin}: see --margin.", *comparison.notes]


def write_comparison(comparison: Comparison, path: Path, *, force: bool = False) -> None:
    """Write all columns as ``.csv``, or the table for reading as ``.md`` or ``.tex``.

    A file that featpipe did not write is replaced only by ``force``.
    """
    shown = pd.DataFrame(display_rows(comparison))
    match path.suffix:
        case ".csv":
            text = neutralised(comparison.table()).to_csv(index=False)
            mark = text.partition("accuracy")[0]  # the first names of the header
        case ".md":
            mark = f"<!-- {_WRITTEN} -->\n"
            table = shown.to_markdown(index=False, disable_numparse=True)
            notes = "".join(f"* {note}\n" for note in footnotes(comparison))
            text = f"{table}\n\n{notes}\n{mark}"
        case ".tex":
            shown.columns = shown.columns.str.replace("%", r"\%").str.replace("±", r"$\pm$")
            mark = f"% {_WRITTEN}\n"
            notes = "".join(f"% {note}\n" for note in footnotes(comparison))
            table = shown.style.hide(axis="index").format(escape="latex").to_latex(hrules=True)
            text = mark + notes + table
        case _:
            what = f"Cannot write a table as {path.name!r}."
            raise UsageError(what, expected="a name in .csv, .md or .tex")
    refuse_foreign(path, mark.encode(), force=force)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def run_compare(step: Compare, context: Context) -> Outcome:
    """Return the comparison as text and table, and write it to ``--out``."""
    results = find_results(
        context.workspace.results, step.results, step.dataset, note=context.progress.note
    )
    comparison = compare(results, published=step.reference or step.published, margin=step.margin)
    tested = shown = [pair for pair in comparison.pairs if pair["models"]]
    if len(tested) > _MAX_SENTENCES:  # only those with the first of a group
        first = {next(group)["name"] for _, group in groupby(comparison.rows, lambda r: r["group"])}
        shown = [pair for pair in tested if pair["a"] in first]
    several = len({row["features"] for row in comparison.rows}) > 1
    features = {row["name"]: f" ({row['features']})" * several for row in comparison.rows}
    titles = {row["name"]: row["method"] + features[row["name"]] for row in comparison.rows}
    sentences = []
    for pair in shown:
        a, b = (titles[pair[side]] for side in ("a", "b"))
        sentences.append(f"{a} against {b}, {pair['n']} test images:")
        for question, subject in QUESTIONS.items():
            if verdict := pair[question]:
                sentences.append(f"  {subject}: {verdict_in_words(verdict, comparison.margin)}")
    if rest := len(tested) - len(shown):
        sentences.append(f"({rest} further pairs were tested: see --json or the report)")
    sentences += [f"note: {note}" for note in comparison.notes]
    paths = () if step.out is None else (step.out,)
    if step.out is not None:
        write_comparison(comparison, step.out, force=step.force)
        sentences.append(f"→ {step.out}")
    message, table = "\n".join(["", *sentences]), display_rows(comparison)
    return Outcome("done", message, paths, asdict(comparison), table=table)


def equivalent_within(margin: float) -> str:
    """Return the verdict "equivalent" with its margin, in points."""
    return f"{EQUIVALENT} within {margin:g} point{'' if margin == 1 else 's'}"


def verdict_in_words(verdict: dict[str, Any], margin: float) -> str:
    """Return a verdict with its numbers; the first of the pair is the subject."""
    value, low, high = (100 * verdict[name] for name in ("difference", "low", "high"))
    numbers = (
        f"{value:+.2f} points [{low:+.2f}, {high:+.2f}], {p_text(verdict['p_value'])}, adjusted "
        f"{'< ' * (verdict['p_value'] <= SMALLEST_P)}{verdict['p_adjusted']:.3g} "
        f"({verdict['method']})"
    )
    word = verdict["verdict"]
    if word == EQUIVALENT:
        word = equivalent_within(margin)
    elif word == UNDECIDED and verdict["rows_needed"]:
        numbers += f"; about {verdict['rows_needed']:,} test images would decide it"
    elif word == UNDECIDED:
        numbers += "; more test images alone would not decide it"
    return f"{word}: {numbers}"
