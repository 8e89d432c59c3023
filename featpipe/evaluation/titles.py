"""Different titles for results that are shown together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featpipe.errors import UsageError
from featpipe.evaluation.result import Result
from featpipe.steps import STEPS, options_of
from featpipe.steps.options import OptionSpec, as_written, plain

_FEW_VALUES = 3  # that a title names


def options_behind(result: Result) -> dict[str, OptionSpec]:
    """Return the options of the step that made a result; none if its package is gone or broken."""
    try:
        return options_of(STEPS.get(result.method))
    except UsageError:
        return {}


def settings_of(result: Result) -> dict[str, Any]:
    """Return the settings of a result that may change its numbers, without those of the input."""
    options, settings = options_behind(result), dict(result.settings)
    for key, known in options.items():
        if key in settings and (known.selects_input or not known.affects_result):
            del settings[key]
        elif known.item_type is Path and settings.get(key) is not None:
            settings[key] = Path(settings[key]).name
    return settings


def _embedding(result: Result) -> dict[str, Any]:
    """Return what made the features of a result, besides the backbone that its rows name."""
    if not result.stores:
        return {}
    manifest = result.stores[0]["manifest"]
    backbone = manifest["backbone"]
    preprocessing = backbone.get("preprocessing", {})
    return {
        "layer": result.stores[0]["layer"],
        "weights": backbone.get("weights", {}).get("name"),
        "image size": preprocessing.get("crop"),
        **{name: preprocessing.get(name) for name in ("fit", "decode")},
        **{name: backbone.get(name) for name in ("precision", "runtime")},
        "dtype": manifest["dtype"],
    }


def _in_words(value: Any) -> str:
    """Return a setting for a title; of many values the first and the last."""
    if isinstance(value, list | tuple):
        ends = value if len(value) <= _FEW_VALUES else [value[0], "…", value[-1]]
        return " ".join(map(_in_words, ends)) if "…" in ends else ", ".join(map(_in_words, ends))
    return as_written(value)


def unique_titles(
    results: Sequence[Result], rows: Sequence[dict[str, Any]], shown: Sequence[str] = ()
) -> list[str]:
    """Return titles made different by what differs.

    That is, in this order: features, protocol, settings, what made the features (layer, precision
    …), images, day. Results that differ in none of these get their name. ``rows`` describe the
    results: ``method``, ``features``, ``protocol``, ``name``. Rows that differ in what is ``shown``
    beside the titles may have the same title.
    """
    facts = {name: [str(row[name] or "") for row in rows] for name in ("features", "protocol")}
    settings, embeddings = [], []
    for result in results:
        usual = {name: plain(known.default) for name, known in options_behind(result).items()}
        own = {k: v for k, v in settings_of(result).items() if v not in (None, usual.get(k))}
        settings.append({k: f"{k.replace('_', ' ')} {_in_words(v)}" for k, v in own.items()})
        made = {k: v for k, v in _embedding(result).items() if v is not None}
        embeddings.append({k: f"{k} {_in_words(v)}" for k, v in made.items()})
    for key in dict.fromkeys(key for result in results for key in result.settings):
        facts.setdefault(key, [each.get(key, "") for each in settings])
    for key in dict.fromkeys(key for each in embeddings for key in each):
        facts[f"embedding {key}"] = [each.get(key, "") for each in embeddings]
    facts["images"] = [f"{row['n_test']} test images" if "n_test" in row else "" for row in rows]
    facts["created"] = [getattr(result, "created", "")[:10] for result in results]
    facts["name"] = [row["name"] for row in rows]
    titles = [str(row["method"]) for row in rows]
    beside = [tuple(row[fact] for fact in shown) for row in rows]
    for fact in [name for name in facts if name not in shown]:
        alike: dict[Any, list[int]] = defaultdict(list)
        for i, row in enumerate(zip(titles, beside, strict=True)):
            alike[row].append(i)
        for members in alike.values():
            if len({facts[fact][i] for i in members}) > 1:
                for i in members:
                    joined = " on " if fact == "features" else ", "
                    titles[i] = joined.join(filter(None, [titles[i], facts[fact][i]]))
    return titles
