"""Read the entries of a recipe's list ``steps``: checks, overrides, and lists that become tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from featpipe.errors import RecipeError, UsageError
from featpipe.recipe.checks import Options, known_keys, mapping_of, name_of, normal_keys
from featpipe.recipe.located import Located
from featpipe.recipe.model import PENDING, RecipeStep, Variant
from featpipe.registry import did_you_mean
from featpipe.steps.old import STEPS, OptionSpec, Step, options_of

_STEP_KEYS = ("step", "name", "from", "grid", "each")
_MAX_TASKS = 2_000


@dataclass(frozen=True)
class Override:
    """One ``--set``, or ``--limit``, which means images to work on and nothing else."""

    text: str
    step: str | None
    option: str
    value: Located
    needs: str = ""

    def fits(self, name: str, specs: Mapping[str, OptionSpec]) -> bool:
        """Whether a step of this name and with these options is meant."""
        named = self.step in (None, name) and self.option in specs
        return named and (not self.needs or self.needs in specs)


class EntryReader:
    """Reads the entries of ``steps`` one after another."""

    def __init__(self, where: str, defaults: Options, overrides: list[Override]) -> None:
        self.where = where
        self.defaults = defaults
        self.overrides = overrides
        self.used: set[str] = set()
        self.lines: dict[str, int] = {}
        self.resolved: list[dict[str, Any]] = []

    def read(self, entry: Located) -> RecipeStep:
        """Return one step with its variants."""
        given = mapping_of(entry, self.where, "A step")
        kind = self._kind(given, entry.line)
        name = name_of(given["name"], self.where) if "name" in given else kind
        if name in self.lines:
            raise self._error(
                f"Two steps are called {name!r}.",
                entry.line,
                expected="a name of its own for each",
                got=f"the other stands at line {self.lines[name]}",
                next_step=f"add to one of them, for example: name: {name}2",
            )
        self.lines[name] = entry.line
        shared, each = self._options(kind, name, given)
        sources = self._sources(given.get("from"))
        self.resolved.append(_resolved(kind, name, sources, shared, each))
        variants = self._variants(STEPS[kind], shared, each, entry.line)
        return RecipeStep(name, kind, entry.line, sources, variants)

    def finish(self, steps: Sequence[RecipeStep]) -> None:
        """Complain about overrides that met no step, and about names under ``from``."""
        for override in self.overrides:
            if override.text in self.used:
                continue
            if override.step is not None and override.step not in self.lines:
                hint = did_you_mean(override.step, self.lines)
                known = f"one of the steps {', '.join(self.lines)}"
            else:
                names = {n for step in steps for n in options_of(STEPS[step.kind])}
                hint, known = did_you_mean(override.option, names), "an option of a step"
            raise UsageError(
                f"{override.text} fits no step of the recipe.",
                where=self.where,
                expected=known,
                next_step=hint.strip() or None,
            )
        for step in steps:
            for name in step.sources or ():
                if name not in self.lines:
                    raise self._error(
                        f"There is no step {name!r} for {step.name!r} to start from.",
                        step.line,
                        expected=", ".join(self.lines),
                        next_step=did_you_mean(name, self.lines).strip() or None,
                    )

    def _kind(self, given: Options, line: int) -> str:
        if "step" not in given:
            raise self._error(
                "A step does not say which it is.",
                line,
                expected=f"step: {' | '.join(STEPS)}",
                got=", ".join(given) or "nothing",
            )
        kind = str(given["step"].plain())
        if kind not in STEPS:
            raise self._error(
                f"There is no step {kind!r}.",
                given["step"].line,
                expected=", ".join(STEPS),
                next_step=did_you_mean(kind, STEPS).strip() or None,
            )
        return kind

    def _options(self, kind: str, name: str, given: Options) -> tuple[Options, list[Options]]:
        """Return the options of a step and those of its ``each`` entries, overrides worked in."""
        specs = options_of(STEPS[kind])
        what = f"The step {kind!r}"
        own = normal_keys({key: node for key, node in given.items() if key not in _STEP_KEYS})
        known_keys(own, specs, what, self.where, also=_STEP_KEYS)
        own |= self._grid(given.get("grid"), STEPS[kind], own)
        each = []
        for entry in self._list(given.get("each"), "each"):
            alternative = normal_keys(mapping_of(entry, self.where, "An entry of 'each'"))
            known_keys(alternative, specs, what, self.where)
            each.append(alternative)
        shared = {key: node for key, node in self.defaults.items() if key in specs} | own
        for override in self.overrides:
            if override.fits(name, specs):
                self.used.add(override.text)
                shared[override.option] = override.value
                each = [{k: v for k, v in e.items() if k != override.option} for e in each]
        return shared, each

    def _grid(self, node: Located | None, step: type[Step], own: Options) -> Options:
        """Return the options under ``grid``: values that the method chooses among itself."""
        if node is None:
            return {}
        grid = normal_keys(mapping_of(node, self.where, "'grid'"))
        known_keys(grid, step.chosen, f"The grid of the step {step.kind!r}", self.where)
        if twice := sorted(set(grid) & set(own)):
            raise self._error(f"{twice[0]!r} stands both under 'grid' and beside it.", node.line)
        return grid

    def _sources(self, node: Located | None) -> tuple[str, ...] | None:
        if node is None:
            return None
        return tuple(str(item.plain()) for item in self._list(node, "from"))

    def _list(self, node: Located | None, key: str) -> list[Located]:
        if node is None:
            return []
        if not isinstance(node.value, list):
            if key == "from" and isinstance(node.value, str):
                return [node]
            raise self._error(f"{key!r} takes a list.", node.line, got=repr(node.plain()))
        if not node.value:
            raise self._error(f"{key!r} is an empty list.", node.line)
        return node.value

    def _variants(
        self, step: type[Step], shared: Options, each: list[Options], line: int
    ) -> tuple[Variant, ...]:
        specs = options_of(step)
        labels = _distinguishing(each)
        variants: dict[Step, Variant] = {}
        for alternative, prefix in zip(each or [{}], labels or [""], strict=True):
            options = shared | alternative
            axes = {key: self._axis(specs[key], node) for key, node in options.items()}
            labelled = [
                zip(nodes, _labels(key, nodes) if len(nodes) > 1 else [""], strict=True)
                for key, nodes in axes.items()
            ]
            for values in product(*labelled):
                chosen = dict(zip(axes, (node for node, _ in values), strict=True))
                label = ",".join(text for text in (prefix, *(text for _, text in values)) if text)
                made = self._step(step, chosen, line)
                variants.setdefault(made, Variant(label, made))
                if len(variants) > _MAX_TASKS:
                    raise self._error(
                        "The lists of the step make too many tasks.",
                        line,
                        expected=f"at most {_MAX_TASKS}",
                    )
        return tuple(variants.values())

    def _axis(self, spec: OptionSpec, node: Located) -> list[Located]:
        """Return the values of an option, one per task."""
        if not isinstance(node.value, list):
            return [node]
        if not node.value:
            raise self._error(f"{spec.name!r} is an empty list.", node.line)
        if spec.many and not any(isinstance(item.value, list) for item in node.value):
            return [node]
        return node.value

    def _step(self, step: type[Step], options: Mapping[str, Located], line: int) -> Step:
        specs = options_of(step)
        values: dict[str, Any] = dict.fromkeys(step.filled, PENDING)
        for key, node in options.items():
            try:
                values[key] = specs[key].parse(node.plain())
            except UsageError as error:
                raise self._at(error, node.line) from error
        try:
            return step.from_mapping(values)
        except UsageError as error:
            raise self._at(error, line) from error

    def _at(self, error: UsageError, line: int) -> RecipeError:
        """Return the same complaint with its line, or with ``--set`` where it has none."""
        place = f"{self.where}, line {line}" if line else "--set"
        located = RecipeError(error.what, where=place)
        located.details |= {k: v for k, v in error.details.items() if k != "where"}
        return located

    def _error(self, what: str, line: int, **details: Any) -> RecipeError:
        return RecipeError(what, where=f"{self.where}, line {line}", **details)


def _labels(key: str, nodes: Sequence[Located]) -> list[str]:
    """Return short labels of values; paths by their last parts where these tell them apart."""
    values = [node.plain() for node in nodes]
    texts = ["+".join(map(str, v)) if isinstance(v, list) else str(v) for v in values]
    short = [text.rpartition("/")[2] for text in texts]
    told_apart = len(set(short)) == len(set(texts))
    return [f"{key}={text}" for text in (short if told_apart else texts)]


def _distinguishing(each: list[Options]) -> list[str]:
    """Return a short label per entry of ``each``: only keys that tell more of them apart."""
    labels = [""] * len(each)
    for key in dict.fromkeys(key for entry in each for key in entry if key != "title"):
        having = [number for number, entry in enumerate(each) if key in entry]
        longer = list(labels)
        for number, text in zip(having, _labels(key, [each[n][key] for n in having]), strict=True):
            longer[number] = ",".join(filter(None, (labels[number], text)))
        if len(set(longer)) > len(set(labels)):
            labels = longer
    return labels


def _resolved(
    kind: str,
    name: str,
    sources: tuple[str, ...] | None,
    shared: Options,
    each: list[Options],
) -> dict[str, Any]:
    entry: dict[str, Any] = {"step": kind, "name": name}
    if sources is not None:
        entry["from"] = list(sources)
    entry |= {key: node.plain() for key, node in shared.items()}
    if each:
        entry["each"] = [{key: node.plain() for key, node in e.items()} for e in each]
    return entry
