"""What a comparison may claim: better, worse, equivalent within a margin, or undecided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from featpipe.statistics.paired_tests import (
    SMALLEST_P,
    Answers,
    Difference,
    between_methods,
    between_models,
)

ALPHA = 0.05  # family-wise error rate
MARGIN = 0.01  # one point: smaller differences do not matter to most people
DIFFERENT_ROWS = "not comparable: different test rows"

BETTER, WORSE, EQUIVALENT, UNDECIDED = "better", "worse", "equivalent", "undecided"


@dataclass(frozen=True)
class Verdict:
    """What can be claimed about the accuracy of method a minus that of method b.

    ``verdict`` is *better* or *worse* if ``low`` to ``high`` excludes zero, *equivalent* if it is
    within the margin, else *undecided*. Interval and verdict come from one test: the interval's
    ``confidence`` is the level at which Holm's procedure judged this pair, and ``p_adjusted`` the
    p-value after it. ``rows_needed`` is the number of test rows that would decide an undecided
    pair if the difference remained the same; None if no number would, because training sets vary
    too much.
    """

    verdict: str
    difference: float
    low: float
    high: float
    confidence: float
    p_value: float
    p_adjusted: float
    rows_needed: int | None
    method: str

    as_dict = asdict  # ready for JSON


def holm(p_values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Adjust p-values for many tests by Holm's step-down method (Scand. J. Stat. 6, 1979).

    The k-th smallest of m is judged at the level α / (m − k + 1); once one is not rejected, no
    later one is, and all of them are judged at its level. Both are returned: a p-value is below
    its level exactly if its adjusted value is below α.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    ranked, adjusted, levels = p[order], np.empty_like(p), np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(ranked * np.arange(len(p), 0, -1)).clip(max=1.0)
    level = ALPHA / (len(p) - np.searchsorted(ranked, ranked))  # equal p-values are judged alike
    for first in np.flatnonzero(ranked >= level)[:1]:  # the first that is not rejected
        level[first:] = level[first]
    levels[order] = level
    return adjusted.tolist(), levels.tolist()


def judge(differences: Sequence[Difference], margin: float = MARGIN) -> list[Verdict]:
    """Return the verdicts of a family of tests, corrected for their number."""
    adjusted_values, levels = holm([one.p_value for one in differences])
    verdicts = []
    for one, alpha, adjusted in zip(differences, levels, adjusted_values, strict=True):
        value, reach = one.value, one.reach(alpha)
        low = min(max(-1.0, one.centre - reach), value)
        high = max(min(1.0, one.centre + reach), value)
        # The test decides about zero. If it is exact and the interval is not, they can disagree
        # slightly; the limit next to zero is then moved to zero, or just past it.
        rows_needed = None
        if adjusted >= ALPHA:
            low, high = min(low, 0.0), max(high, 0.0)
            verdict = EQUIVALENT if -margin < low and high < margin else UNDECIDED
        elif value > 0:
            low, verdict = max(low, np.finfo(float).tiny), BETTER
        else:
            high, verdict = min(high, -np.finfo(float).tiny), WORSE
        if verdict == UNDECIDED:
            target = max(abs(value), margin - abs(value))
            quantile = stats.t.ppf(1 - alpha / 2, one.variance.df)
            times = one.variance.more_rows((target / quantile) ** 2)
            if times is not None:
                # An exact test needs this many rows answered differently, all won by one method.
                least = math.log2(2 / alpha) / max(sum(one.wins), 1)
                rows_needed = max(math.ceil(one.n * max(times, least)), one.n + 1)
        facts = 1 - alpha, one.p_value, adjusted, rows_needed, one.method
        verdicts.append(Verdict(verdict, value, low, high, *facts))
    return verdicts


def compare_all(named: Mapping[str, Answers], margin: float = MARGIN) -> list[dict[str, Any]]:
    """Compare every pair of named methods, corrected for the number of pairs.

    Pairs are in the order of the mapping: ``a``, ``b``; ``n`` test rows; ``a_better`` and
    ``b_better``, the rows on which one method is right more often; ``models`` and ``methods``, the
    verdicts (as dict) on these trained models and on the methods; ``reason`` if there is no verdict
    at all; ``reason_methods`` if there is none on the methods.
    """
    empty = ("n", "a_better", "b_better", "models", "methods", "reason", "reason_methods")
    pairs: list[dict[str, Any]] = []
    for a, b in combinations(named, 2):
        pair: dict[str, Any] = {"a": a, "b": b, **dict.fromkeys(empty)}
        pairs.append(pair)
        if not np.array_equal(named[a].sums.ids, named[b].sums.ids):
            pair["reason"] = pair["reason_methods"] = DIFFERENT_ROWS
            continue
        pair["models"] = models = between_models(named[a], named[b])
        pair["n"], (pair["a_better"], pair["b_better"]) = models.n, models.wins
        methods = between_methods(named[a], named[b], models)
        pair["reason_methods" if isinstance(methods, str) else "methods"] = methods
    for question in ("models", "methods"):
        tested = [pair for pair in pairs if pair[question] is not None]
        verdicts = judge([pair[question] for pair in tested], margin)
        for pair, verdict in zip(tested, verdicts, strict=True):
            pair[question] = verdict.as_dict()
    return pairs


def p_text(p_value: float) -> str:
    """Return a p-value for reading, never as zero."""
    return f"p < {SMALLEST_P:g}" if p_value <= SMALLEST_P else f"p = {p_value:.3g}"
