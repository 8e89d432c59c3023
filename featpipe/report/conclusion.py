"""One sentence for a group of methods, never stronger than the statistics."""

from __future__ import annotations

from typing import Any

from featpipe.evaluate.compare import LIKE_BEST, WORSE
from featpipe.report.formats import count, p_value, percent, points
from featpipe.report.material import Group, Method

_NAMED = 3  # more names than these would hide the verdict


def conclude(group: Group) -> str:
    """Say which method is best on these test rows, by how much, and how sure that is.

    A method is said to be better only where the exact paired test, corrected by Holm for all
    pairs of the report, distinguishes the two.
    """
    best, others = group.methods[0], group.methods[1:]
    rows = f"the {count(best.row['n_test'])} test images of {group.dataset}"
    if not others:
        return (
            f"{best.title} classifies {_accuracy(best)} of {rows} correctly; "
            "no other method was tested on them, so nothing is said about better or worse."
        )
    like = [method for method in others if method.row["verdict"] == LIKE_BEST]
    worse = [method for method in others if method.row["verdict"] == WORSE]
    start = f"{best.title} has the highest accuracy on {rows}, {_accuracy(best)}"
    if not like:
        return f"{start}, and is distinguishable from {_each(worse)}{_margin(group, worse)}."
    undecided = f"{start}, but {_names(like)} {_verb(like)} not distinguishable from it"
    if not worse:
        return f"{undecided} (exact paired tests, Holm-adjusted p ≥ 0.05)."
    return (
        f"{undecided} (exact paired tests, Holm-adjusted p ≥ 0.05); "
        f"it is distinguishable from {_names(worse)}."
    )


def pair_of(group: Group, a: Method, b: Method) -> dict[str, Any]:
    """Return the paired test of two methods, turned so that a comes first."""
    for pair in group.pairs:
        if pair["a"] == a.row["name"] and pair["b"] == b.row["name"]:
            return pair
        if pair["a"] == b.row["name"] and pair["b"] == a.row["name"]:
            return {
                **pair,
                "a": pair["b"],
                "b": pair["a"],
                "difference": -pair["difference"],
                "ci_low": -pair["ci_high"],
                "ci_high": -pair["ci_low"],
                "a_better": pair["b_better"],
                "b_better": pair["a_better"],
            }
    raise KeyError((a.title, b.title))


def _accuracy(method: Method) -> str:
    row = method.row
    interval = f"95\u00a0% interval {percent(row['low'])} to {percent(row['high'])}"
    return f"{percent(row['accuracy'])}\u00a0% ({interval})"


def _margin(group: Group, worse: list[Method]) -> str:
    best = group.methods[0]
    tests = [pair_of(group, best, method) for method in worse]
    nearest = min(range(len(worse)), key=lambda i: tests[i]["difference"])
    pair = tests[nearest]
    least_sure = max(test["p_adjusted"] for test in tests)
    sure = p_value(least_sure)
    which = "which is" if len(worse) == 1 else f"of which the nearest, {worse[nearest].title}, is"
    return (
        f", {which} {percent(pair['difference'])} points behind "
        f"(95\u00a0% interval {points(pair['ci_low'])} to {points(pair['ci_high'])}; "
        f"exact paired test{'s' if len(worse) > 1 else ''}, Holm-adjusted p "
        f"{sure if sure.startswith('<') else '≤ ' + sure})"
    )


def _each(methods: list[Method]) -> str:
    if len(methods) == 1:
        return methods[0].title
    return f"each of the other {len(methods)} methods"


def _names(methods: list[Method]) -> str:
    titles = [method.title for method in methods]
    if len(titles) > _NAMED:
        return f"{len(titles)} other methods"
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"


def _verb(methods: list[Method]) -> str:
    return "is" if len(methods) == 1 else "are"
