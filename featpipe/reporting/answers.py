"""The first screen in plain words: which method, by how much, how sure, what cost, what fails.

Nothing here is stronger than the paired tests: a method is called better only if a test says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featpipe.evaluation.leaks import DROP_LEAKS, count_of_leaks
from featpipe.evaluation.protocol import GROUPED
from featpipe.reporting.data import Group, Method, by_fact
from featpipe.reporting.images import Images
from featpipe.reporting.sections import SAME_COST, count, duration, percent, points
from featpipe.reporting.suspects import Suspects
from featpipe.statistics.comparison import contamination_notes, equivalent_within
from featpipe.statistics.verdicts import EQUIVALENT, UNDECIDED, WORSE

_NAMED = 3  # more names than these would hide the answer
_FEW_PER_CLASS = 10  # with fewer test images, one of them is more than a tenth of its class
_MEANING = {
    WORSE: "which is demonstrably worse",
    EQUIVALENT: "which is equivalent",
    UNDECIDED: "which could be chance",
}


def conclusion(group: Group, margin: float) -> tuple[str, str]:
    """Name the best method, and say how the others compare with it.

    ``margin`` is what counts as equivalent, in points. A verdict is that on the methods where
    models were trained on several training sets, else on these models.
    """
    first, others = group.methods[0], group.methods[1:]
    accuracy, n = f"{percent(first.row['accuracy'], group.digits)}\u00a0%", first.row["n_test"]
    if first.answers_once:
        accuracy += f" ({count(round(first.row['accuracy'] * n))} of {count(n)})"
    if not others:
        headline = f"{first.title} classifies {accuracy} of the test images correctly."
        return headline, "No other method was tested on them, so there is nothing to compare."
    tied = [method for method in group.methods if method.ties_with(first)]
    headline = f"{first.title} has the highest accuracy: {accuracy}."
    if len(tied) > 1:
        some = f"{tied[0].title}, {tied[1].title} and {len(tied) - 2} more methods"
        each = names_of(tied) if len(tied) <= _NAMED else some
        named = _on_one_backbone(tied, group) or each
        headline = f"{named[0].upper()}{named[1:]} tie at {accuracy}."
    worse, alike, open_ = (_of(others, verdict) for verdict in (WORSE, EQUIVALENT, UNDECIDED))
    if len(worse) == len(others):
        return headline, f"It is demonstrably better than {names_of(worse, 'all {} others')}."
    clauses = [] if worse else ["no method is demonstrably better"]
    if alike:
        are = "is" if len(alike) == 1 else "are"
        clauses.append(f"{names_of(alike)} {are} {equivalent_within(margin)}")
    if open_:
        those = _on_one_backbone(open_, group) or names_of(open_)
        clauses.append(f"{those} may be as good or better")
    if worse:
        rest = f"the {len(worse)} others are" if len(worse) > 1 else f"{names_of(worse)} is"
        clauses.append(f"{rest} demonstrably worse")
    text = "; ".join(clauses)
    return headline, f"{text[0].upper()}{text[1:]}."


def answers(group: Group) -> dict[str, str]:
    """Answer the questions that follow: question → one or two sentences."""
    digits, tests = group.digits, group.tests_of_first
    others = [m for m in group.methods[1:] if m.row["verdict"] in _MEANING]
    leads = []  # of the next method, and of the nearest one that is worse
    for method in dict.fromkeys([*others[:1], *_of(others, WORSE)[:1]]):
        test = tests[method.row["name"]]
        ahead = f"{percent(test['difference'], digits)} points ahead of {method.title}"
        limits = f"{points(test['low'], digits)} and {points(test['high'], digits)}"
        leads.append(f"{ahead}, {_MEANING[method.row['verdict']]} (between {limits}).")
    questions = {
        "By how much?": " ".join(leads),
        "How sure?": _how_sure(group),
        "At what cost?": _cost(group),
        "Where does it fail?": _failures(group),
    }
    return {question: text for question, text in questions.items() if text}


def warnings(group: Group, images: Images) -> list[str]:
    """Return what a reader must know before relying on a group's numbers, the worst first."""
    best, digits = group.methods[0], group.digits
    tested = np.bincount(group.true, minlength=len(group.classes))
    found = contamination_notes(method.result for method in group.methods)
    notes = [note for method in group.methods for note in method.result.notes]
    found += dict.fromkeys(note for note in notes if note.startswith(GROUPED))
    found += filter(None, [images.doubt])
    if stopped := [method for method in group.methods if not method.row["converged"]]:
        found.append(f"The solver did not converge for {names_of(stopped)}: see its notes.")
    if best.row["low"] <= (chance := tested.max() / tested.sum()):
        largest = f"{group.classes[tested.argmax()]} ({percent(chance, digits)}\u00a0%)"
        found.append(
            f"Even {best.title} is not demonstrably better than always answering {largest}."
        )
    if (least := int(tested.min())) < _FEW_PER_CLASS:
        rare = [name for name, n in zip(group.classes, tested, strict=True) if n == least]
        images_each = f"{least or 'no'} test image{'s' * (least != 1)}{' each' * (len(rare) > 1)}"
        found.append(f"{_listed(rare, '{} classes')}: {images_each}; per-class numbers are rough.")
    return found


def alarms(group: Group, suspects: Suspects) -> list[str]:
    """Return what a reader must know before any number: that test images are in training."""
    found = [f"{note} {DROP_LEAKS}" for note in leaks(group)]
    if suspects.path is not None and (near := suspects.near):
        are = "image is nearly the same as a training image"
        if near > 1:
            are = "images are nearly the same as training images"
        listed = f"data/audits/{suspects.path.with_suffix('.csv').name}"
        how = f"--groups {listed} keeps them together"
        if suspects.across:
            how = f"--drop {listed} leaves the latter out"
        found.append(f"{near} test {are}: {how}.")
    return found


def leaks(group: Group) -> list[str]:
    """Say how many test images are training images, too, and the best accuracy without them.

    Methods are named where they differ in these images.
    """
    accounts = {m: known for m in group.methods if (known := m.result.extra.get("leaks"))}
    leaky = by_fact(accounts, lambda m: (accounts[m]["leaked"], accounts[m]["test_images"]))
    said, digits = [], group.digits
    for (leaked, _), methods in sorted(leaky.items(), key=lambda item: -item[0][0]):
        if not leaked:
            continue
        account = accounts[methods[0]]
        whose = f"For {names_of(methods)}, " * (len(methods) < len(accounts))
        text = f"{whose}{count_of_leaks(account)}. "
        if (left := account["accuracy_without"]) is None:
            text += "Without them no test image is left: the accuracy is not that on new images."
        else:
            value, low, high = (percent(left[k], digits) for k in ("value", "low", "high"))
            before = percent(account["accuracy"]["value"], digits)
            text += f"Without them, {methods[0].title} has {value} % ({low} to {high}) "
            text += f"instead of {before} %."
        said.append(text)
    return said


def _on_one_backbone(methods: Sequence[Method], group: Group) -> str:
    """Return a name for all methods on one of several backbones; empty if they are not that."""
    features = {method.row["features"] for method in methods}
    there = [method for method in group.methods if method.row["features"] in features]
    if len(features) > 1 or len(there) != len(methods) or len(there) == len(group.methods):
        return ""
    number = "both" if len(there) == 2 else f"all {len(there)}"
    return f"{number} methods on {features.pop()}" if len(there) > 1 else ""


def _how_sure(group: Group) -> str:
    first, digits = group.methods[0], group.digits
    low, high = percent(first.row["low"], digits), percent(first.row["high"], digits)
    whose = "their" if sum(method.ties_with(first) for method in group.methods) > 1 else "its"
    sentences = [
        f"With {count(first.row['n_test'])} test images, the 95\u00a0% interval of {whose} "
        f"accuracy is {low} to {high}\u00a0%."
    ]
    tests = group.tests_of_first.values()
    if undecided := [test for test in tests if test["verdict"] == UNDECIDED]:
        needed = [test["rows_needed"] for test in undecided]
        settle = "more test images alone would not settle it"
        if enough := max(filter(None, needed), default=None):
            what = "some of them" if None in needed else "it"
            settle = f"about {count(float(f'{enough:.2g}'))} test images would settle {what}"
        reach = percent(max(max(test["high"], -test["low"]) for test in undecided), 1)
        sentences.append(f"Differences of up to {reach} points remain possible; {settle}.")
    if (least := first.row["methods_low"]) is not None:
        limits = f"{percent(least, digits)} to {percent(first.row['methods_high'], digits)}"
        sentences.append(f"Allowing for other training images, too, it is {limits}\u00a0%.")
    elif first.row["verdict_methods"]:
        sentences.append("The differences also allow for other training images.")
    elif group.methods[1:]:
        sentences.append("Other training images could change the order.")
    return " ".join(sentences)


def _cost(group: Group) -> str:
    """Name the cheapest of the methods that may be the best."""
    first = group.methods[0]
    contenders = [method for method in group.methods if method.row["verdict"] != WORSE]
    seconds = {method: method.row["total_seconds"] for method in contenders}
    least = min(seconds.values())
    cheapest = next(m for m in seconds if seconds[m] <= SAME_COST * least)  # the best of these
    spent = f"{duration(seconds[cheapest])} from images to answers"
    if len(contenders) == 1:
        return f"{first.title} took {spent}."
    among = " of those that may be the best" * (len(contenders) < len(group.methods))
    if cheapest is first:
        return f"{first.title} took {spent}; none{among} was clearly faster."
    own = f" ({first.title}: {duration(seconds[first])})"
    return f"Cheapest{among}: {cheapest.title}, {spent}{own}."


def _failures(group: Group) -> str:
    """Name the classes that the first method confuses most, and the hardest ones."""
    method = group.methods[0]
    matrix = np.array(method.metrics["confusion"])
    tested, right = matrix.sum(axis=1), matrix.diagonal()
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    if not (wrong := int(errors.sum())):
        return "No test image is misclassified."
    true, answered = np.unravel_index(errors.argmax(), errors.shape)
    of = f"{count(errors[true, answered])} of {count(tested[true])}"
    if (models := len(method.result.splits)) > 1 and len(method.table.row) > method.row["n_test"]:
        of += f" answers of {models} models"
    recall = np.where(tested > 0, right / np.maximum(tested, 1), 1.0)
    hard = [method.columns[k] for k in np.flatnonzero(recall == recall.min())]
    classes = "class" if len(hard) == 1 else "classes"
    hardest = _listed(hard, f"{{}} of {len(recall)}")
    hardest = f"Hardest {classes}: {hardest}, {percent(recall.min(), 1)}\u00a0% right"
    confused = f"{method.columns[true]} taken for {method.columns[answered]} ({of})"
    if others := int((errors == errors.max()).sum()) - 1:
        confused += f", {others} other pair{'s' * (others > 1)} as often"
    tied = sum(other.ties_with(method) for other in group.methods) > 1
    if errors.max() == 1:  # no confusion occurs twice
        pairs = [
            f"{method.columns[i]} taken for {method.columns[j]}" for i, j in np.argwhere(errors)
        ]
        listed = f": {_listed(pairs, '')}" if wrong <= _NAMED else ", no two alike"
        made = f"{wrong} error{'s' * (wrong > 1)}{listed}"
        text = f"{method.title} makes {made}." if tied else f"Only {made}."
        return text if wrong <= _NAMED else f"{text} {hardest}."
    text = f"Most confused: {confused}. {hardest}."
    return f"{method.title}: {text[0].lower()}{text[1:]}" if tied else text


def _of(methods: Sequence[Method], verdict: str) -> list[Method]:
    return [method for method in methods if method.row["verdict"] == verdict]


def names_of(methods: Sequence[Method], many: str = "{} methods") -> str:
    """Return the titles of methods in words; of many, how many they are."""
    return _listed([method.title for method in methods], many)


def _listed(names: Sequence[str], many: str) -> str:
    if len(names) > _NAMED:
        return many.format(len(names))
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
