"""The small languages of options that several steps share: ``kfold:5``, ``holdout:0.2``.

They are read here, without torch or scikit-learn, so that a command line or a plan refuses what is
wrong before anything is computed.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from featpipe.errors import UnknownNameError, UsageError

_PROTOCOLS = "auto, split, folds, fold:K, kfold:K, holdout:F"
LOGITS = "logits"  # the layer, of any backbone with a classifier, that is the classifier's output


def protocol(text: str) -> tuple[str, float | None]:
    """Read how rows are split, as its kind and its number.

    Examples
    --------
    >>> protocol("kfold:5"), protocol("split")
    (('kfold', 5), ('split', None))
    """
    kind, colon, argument = text.partition(":")
    expected, advice = f"{_PROTOCOLS} or, for zeroshot, all", None
    if kind in (least := {"fold": 0, "kfold": 2}):
        expected, advice = f"{kind}:K, a whole number of at least {least[kind]}", f"{kind}:5"
        if (count := number(argument, whole=True)) >= least[kind]:
            return kind, int(count)
    elif kind == "holdout":
        expected, advice = "holdout:F, a share between 0 and 1", "holdout:0.2"
        if 0 < (share := number(argument)) < 1:
            return kind, share
    elif not colon and kind in ("auto", "split", "folds", "all"):
        return kind, None
    missing = ": its number is missing" * bool(advice and not colon)
    what, hint = f"{text!r} is not a protocol{missing}.", advice and f"--protocol {advice}"
    raise UsageError(what, expected=expected, next_step=hint)


def device_name(text: str) -> None:
    """Check the name of a device; whether it is there is known only with torch."""
    if not re.fullmatch(r"auto|cpu|(cuda|mps)(:[0-9]{1,3})?", text):
        what, known = f"There is no device named {text!r}.", ("auto", "cpu", "cuda", "mps")
        raise UnknownNameError(what, text, known, expected="auto, cpu, cuda, cuda:1 …, mps")


def need_training(text: str) -> None:
    """Refuse the protocol under which no row trains."""
    if text == "all":
        what = "Under the protocol 'all' every row is tested and none trains: it is for zeroshot."
        raise UsageError(what, expected=_PROTOCOLS)


def validation(text: str) -> tuple[str, float | None]:
    """Read how training rows choose hyper-parameters: ``auto``, ``holdout:F`` or ``kfold:K``."""
    try:
        kind, argument = protocol(text)
    except UsageError:
        kind, argument = "", None
    if kind not in ("auto", "holdout", "kfold"):
        expected = "auto, holdout:F (a share such as 0.2) or kfold:K (at least 2)"
        raise UsageError(f"{text!r} is not a way to choose hyper-parameters.", expected=expected)
    return kind, argument


def table_file(path: Path) -> None:
    """Check that the ending of a file's name is a format that vectors can be written in."""
    if path.suffix not in (".npz", ".parquet", ".csv", ".h5"):
        expected = "a name that ends in .npz, .parquet, .csv or .h5"
        raise UsageError(f"Cannot export to {path.name!r}.", expected=expected)


def grouping(text: str) -> None:
    """Check how images are grouped: ``folder``, the one an image is in, or ``regex:PATTERN``.

    The group is what the first parentheses of the pattern match in an image's id, or all of it.
    """
    kind, _, pattern = text.partition(":")
    if text != "folder" and (kind != "regex" or not pattern):
        raise UsageError(f"{text!r} is not a grouping rule.", expected="folder or regex:PATTERN")
    try:
        re.compile(pattern)
    except re.error as error:
        what = f"{pattern!r} is not a valid regular expression: {error}."
        raise UsageError(what, expected=r"a pattern such as regex:patient_(\d+)") from None


def number(text: str, *, whole: bool = False) -> float:
    """Return a finite number, or NaN, which fails every comparison."""
    if whole and not (text.isascii() and text.isdecimal()):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
