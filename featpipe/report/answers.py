"""The first screen in plain words: which method, by how much, how sure, what cost, what fails.

Nothing here is stronger than the paired tests: a method is better only where a test said so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.report.data import Group, GroupImages, Method
from featpipe.report.sections import count, duration, percent, points
from featpipe.statistics.comparison import contamination_notes
from featpipe.statistics.verdicts import EQUIVALENT, UNDECIDED, WORSE

_NAMED = 3  # more names than these would hide the answer
_MEANING = {
    WORSE: "which is demonstrably worse",
    EQUIVALENT: "which is equivalent",
    UNDECIDED: "which could be chance",
}
_FEW_PER_CLASS = 10  # test images: a tenth of a class and more hangs on one of them


@dataclass(frozen=True)
class Answers:
    """What a reader wants to know of a group of methods, one or two sentences each."""

    headline: str
    others: str
    by_how_much: str
    how_sure: str
    cost: str
    failures: str

    @property
    def text(self) -> str:
        """All of them as one paragraph."""
        parts = (self.headline, self.others, self.by_how_much, self.how_sure, self.cost, self.failures)
        return " ".join(filter(None, parts))


def answer(group: Group, margin: float) -> Answers:
    """Answer the five questions of a group of methods, the best one first.

    ``margin`` is what counts as equivalent, in points. A verdict is that on the methods, where
    models were trained on several training sets, else that on the trained models.
    """
    tests = {
        pair["b"]: pair["methods"] or pair["models"]
        for pair in group.pairs
        if pair["a"] == group.methods[0].row["name"]
    }
    return Answers(
        *_which(group, margin),
        _by_how_much(group, tests),
        _how_sure(group, tests),
        _cost(group),
        _failures(group),
    )


def warnings(group: Group, images: GroupImages) -> list[str]:
    """Return what a reader must know before trusting the numbers of a group; the worst first."""
    found = contamination_notes(method.result for method in group.methods)
    if images.doubt:
        found.append(images.doubt)
    if stopped := [method for method in group.methods if not method.row["converged"]]:
        found.append(f"The solver did not converge for {_names(stopped)}: see its notes.")
    tested = np.bincount(group.true, minlength=len(group.classes))
    best, largest = group.methods[0], int(tested.argmax())
    if best.row["low"] <= (chance := tested[largest] / tested.sum()):
        found.append(
            f"Even {best.title} is not demonstrably better than always answering "
            f"{group.classes[largest]} ({percent(chance, group.digits)}\u00a0%)."
        )
    if absent := [name for name, n in zip(group.classes, tested, strict=True) if n == 0]:
        found.append(f"No test image shows {_listed(absent)}.")
    if 0 < (least := int(tested[tested > 0].min())) < _FEW_PER_CLASS:
        rare = [name for name, n in zip(group.classes, tested, strict=True) if n == least]
        few = f"only {least} test image{'s' * (least > 1)}{' each' * (len(rare) > 1)}"
        found.append(f"{_listed(rare)}: {few}; per-class numbers are rough.")
    return found


def _which(group: Group, margin: float) -> tuple[str, str]:
    """Name the best method, and say how the others stand to it."""
    first, others = group.methods[0], group.methods[1:]
    accuracy = f"{percent(first.row['accuracy'], group.digits)}\u00a0%"
    if first.answers_once:
        right, n = round(first.row["accuracy"] * first.row["n_test"]), first.row["n_test"]
        accuracy += f" ({count(right)} of {count(n)})"
    if not others:
        return (
            f"{first.title} classifies {accuracy} of the test images correctly.",
            "No other method was tested on them, so there is nothing to compare it with.",
        )
    tied = [method for method in group.methods if method.ties_with(first)]
    headline = (
        f"{_names(tied)} tie at {accuracy}."
        if len(tied) > 1
        else f"{first.title} has the highest accuracy: {accuracy}."
    )
    by_verdict = _by_verdict(others)
    worse, clauses = by_verdict[WORSE], []
    if alike := by_verdict[EQUIVALENT]:
        within = f"equivalent within {margin:g} point{'s' * (margin != 1)}"
        clauses.append(f"{_names(alike)} {_is(alike)} {within}")
    if open_ := by_verdict[UNDECIDED]:
        clauses.append(f"{_names(open_)} may be as good or better")
    if len(worse) == len(others):
        leader = "They are" if len(tied) > 1 else "It is"
        rest = f"all {len(worse)} others" if len(worse) > _NAMED else _names(worse)
        return headline, f"{leader} demonstrably better than {rest}."
    if not worse:
        return headline, " ".join(["No method is demonstrably better.", *_sentence(clauses)])
    rest = f"the {len(worse)} others" if len(worse) > 1 else _names(worse)
    (text,) = _sentence([*clauses, f"{rest} {_is(worse)} demonstrably worse"])
    return headline, text


def _by_how_much(group: Group, tests: dict[str, Any]) -> str:
    """Say the difference to the next method, and to the nearest one that is worse."""
    first = group.methods[0]
    others = [method for method in group.methods[1:] if not method.ties_with(first)]
    by_verdict = _by_verdict(others)
    next_worse = by_verdict[WORSE][:1]
    next_open = [method for method in others[:1] if method not in next_worse]
    sentences = []
    for method in [*next_open, *next_worse]:
        test = tests.get(method.row["name"])
        if test is None:
            continue
        digits = group.digits
        ahead = f"{percent(test['difference'], digits)} points ahead of {method.title}"
        limits = f"between {points(test['low'], digits)} and {points(test['high'], digits)}"
        sentences.append(f"{ahead}, {_MEANING[method.row['verdict']]} ({limits}).")
    return " ".join(sentences)


def _how_sure(group: Group, tests: dict[str, Any]) -> str:
    first, digits = group.methods[0], group.digits
    low, high = percent(first.row["low"], digits), percent(first.row["high"], digits)
    rows = f"{count(first.row['n_test'])} test images"
    sentences = [
        f"With {rows}, its accuracy is known to be {low} to {high}\u00a0% (95\u00a0% interval)."
    ]
    undecided = _by_verdict(group.methods[1:])[UNDECIDED]
    if reach := [tests[one.row["name"]]["high"] for one in undecided if one.row["name"] in tests]:
        span = percent(max(reach), 1)
        needed = [tests[one.row["name"]]["rows_needed"] for one in undecided]
        if enough := max(filter(None, needed), default=None):
            some = "would settle some of them" if None in needed else "would settle it"
            settle = f"about {count(float(f'{enough:.2g}'))} test images {some}"
        else:
            settle = "more test images alone would not settle it"
        sentences.append(f"Differences of up to {span} points remain possible; {settle}.")
    if group.methods[1:]:
        sentences.append(
            "This also allows for other training images."
            if first.row["verdict_methods"]
            else "This is about these trained models; other training images could change the order."
        )
    return " ".join(sentences)


def _cost(group: Group) -> str:
    """Name the cheapest of the methods that may be the best."""
    first = group.methods[0]
    contenders = [method for method in group.methods if method.row["verdict"] != WORSE]
    timed = [method for method in contenders if method.row.get("total_seconds") is not None]
    if not timed:
        return "What it cost was not recorded."
    cheapest = min(timed, key=lambda method: method.row["total_seconds"])
    spent = f"{duration(cheapest.row['total_seconds'])} from images to answers"
    if len(contenders) == 1:
        return f"{first.title} took {spent}."
    among = "" if len(contenders) == len(group.methods) else " of those that may be the best"
    said = f"Cheapest{among}: {cheapest.title}, {spent}"
    if cheapest is not first and first in timed:
        return f"{said} ({first.title}: {duration(first.row['total_seconds'])})."
    return f"{said}."


def _failures(group: Group) -> str:
    """Name the classes that the first method confuses most."""
    method = group.methods[0]
    matrix = np.array(method.metrics["confusion"])
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    if not errors.any():
        return "No test image is misclassified."
    true, answered = np.unravel_index(errors.argmax(), errors.shape)
    of = f"{count(errors[true, answered])} of {count(matrix[true].sum())}"
    confused = f"{method.columns[true]} taken for {method.columns[answered]} ({of})"
    tested = matrix.sum(axis=1)
    recall = np.where(tested > 0, np.diag(matrix) / np.maximum(tested, 1), 1.0)
    hardest = f"{method.columns[recall.argmin()]}, {percent(recall.min(), 1)}\u00a0% right"
    return f"Most confused: {confused}. Hardest class: {hardest}."


def _sentence(clauses: Sequence[str]) -> list[str]:
    """Join clauses to one sentence, if there are any."""
    text = "; ".join(clauses)
    return [f"{text[0].upper()}{text[1:]}."] if text else []


def _is(methods: Sequence[Method]) -> str:
    return "is" if len(methods) == 1 else "are"


def _by_verdict(methods: Sequence[Method]) -> dict[str, list[Method]]:
    found: dict[str, list[Method]] = defaultdict(list)
    for method in methods:
        found[method.row["verdict"]].append(method)
    return found


def _names(methods: Sequence[Method]) -> str:
    return _listed([method.title for method in methods], "methods")


def _listed(names: Sequence[str], kind: str = "classes") -> str:
    if len(names) > _NAMED:
        return f"{len(names)} {kind}"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
