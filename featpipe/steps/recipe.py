"""Recipes: an experiment as data, read and checked before anything runs; see ``docs/recipes.md``.

The rule of lists: an option that takes one value, given a list, is an *axis*: one task per value.
An option that takes several values (``c``, ``k``, an extraction's ``layer``) keeps its list; a list
of lists is an axis over it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from featpipe.errors import RecipeError, UsageError, did_you_mean
from featpipe.files import read_regular
from featpipe.steps import STEPS
from featpipe.steps.base import Step
from featpipe.steps.located import Located, locate, read_located
from featpipe.steps.options import OptionSpec, options_of

A_NAME = "letters, digits, '-', '_' and '.', at least one letter or digit"

_TOP_KEYS = ("name", "about", "defaults", "steps")
_STEP_KEYS = ("step", "name", "from", "grid", "each")
_MAX_TASKS = 2_000
_MOST_BYTES = 1 << 22  # four for each of the characters that are allowed

Options = dict[str, Located]


class Variant(NamedTuple):
    """One task of a step, before it is known which stores or results it works on."""

    label: str  # what distinguishes it from its siblings: "seed=1,model=resnet50"
    step: Step


@dataclass(frozen=True)
class RecipeStep:
    """One entry of the list ``steps``."""

    name: str
    kind: type[Step]
    line: int
    sources: tuple[str, ...] | None  # names under "from"
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Recipe:
    """A recipe that has been read and checked."""

    name: str
    where: str  # the file
    steps: tuple[RecipeStep, ...]
    resolved: dict[str, Any] = field(repr=False)  # defaults and overrides worked in; a recipe too

    def error(self, what: str, line: int, **details: Any) -> RecipeError:
        """Make an error that names the line."""
        return RecipeError(what, where=f"{self.where}, line {line}", **details)


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: ``"my.yaml"``, or the built-in ``"demo"``."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    own = {each.stem: str(each) for each in sorted(path.parent.glob("*.yaml"))}
    folder = Path(str(resources.files("featpipe.pipelines")))
    known = {each.stem: each for each in sorted(folder.glob("*.yaml"))}
    bare = path.parent in (Path(), Path("pipelines"))
    if bare and path.suffix in ("", ".yaml", ".yml") and path.stem in known:
        return known[path.stem]
    got = "a folder" if path.is_dir() else "no regular file" if path.exists() else None
    near = {each: each for each in known} | own
    found = get_close_matches(path.stem, near, n=1, cutoff=0.5)
    hint = f"did you mean {near[found[0]]!r}?" if found else None
    if (beside := f"{path}.yaml") in own.values():
        hint = f"featpipe run {beside}"
    elif path.is_dir():
        hint = f"write one for the images in it: featpipe init {name}"
    expected = f"a file, or one of {', '.join(known)}"
    raise RecipeError(f"There is no recipe {name!r}.", expected=expected, got=got, next_step=hint)


def read_recipe(path: Path, overrides: Sequence[str] = (), limit: int | None = None) -> Recipe:
    """Read a recipe file; see :func:`parse_recipe`."""
    try:
        text = read_regular(path, _MOST_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("The recipe cannot be read.", where=path, got=error) from error
    return parse_recipe(text, str(path), path.stem, overrides, limit)


def parse_recipe(
    text: str,
    where: str = "recipe",
    name: str = "recipe",
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> Recipe:
    """Read a recipe as YAML.

    ``where`` names the file in messages; ``name`` is that of the recipe where the text gives none.
    ``overrides`` are ``"option=value"`` for every step that has the option, or
    ``"step.option=value"`` for one; ``limit`` is how many images of each split are read at most.

    Raises
    ------
    RecipeError
        Naming the line of whatever is wrong, and the nearest right name.

    Examples
    --------
    >>> recipe = parse_recipe('''
    ... steps:
    ...   - {step: extract, model: [resnet18, resnet50], dataset: stl10}
    ...   - {step: svm, grid: {c: [0.001, 0.01]}}
    ... ''', overrides=["seed=1"])
    >>> [variant.label for variant in recipe.steps[0].variants]
    ['model=resnet18', 'model=resnet50']
    >>> recipe.steps[1].variants[0].step.seed
    1
    """
    root, reader = read_located(text, where), _Reader(where, list(map(_Override.parse, overrides)))
    top = reader.mapping(root, "A recipe")
    reader.check_keys(top, _TOP_KEYS, "A recipe")
    entries = top.get("steps")
    if entries is None or not isinstance(entries.value, list) or not entries.value:
        what, line = "A recipe needs a list of steps.", (entries or root).line
        expected = "steps: and below it lines that begin with '- step: …'"
        raise reader.error(what, line, expected=expected)
    if limit is not None:
        override = _Override(f"--limit {limit}", None, "limit", locate(limit), inputs_only=True)
        reader.overrides.append(override)
    if (defaults := top.get("defaults")) and defaults.value is not None:
        known = sorted({option for step in STEPS for option in options_of(step)})
        reader.defaults = reader.mapping(defaults, "'defaults'")
        reader.check_keys(reader.defaults, known, "'defaults'")
    steps = tuple(reader.read_step(entry) for entry in entries.value)
    reader.check_references(steps)
    name = reader.name(top["name"]) if "name" in top else name
    resolved = {"name": name, "steps": reader.resolved}
    if "about" in top:
        resolved["about"] = str(top["about"].plain())
    return Recipe(name, where, steps, resolved)


def is_name(text: str) -> bool:
    """Return whether a text can be part of file names and of task names."""
    return any(map(str.isalnum, text)) and all(c.isalnum() or c in "-_." for c in text)


@dataclass(frozen=True)
class _Override:
    """One ``--set``, or ``--limit``."""

    text: str
    step: str | None
    option: str
    value: Located
    inputs_only: bool = False  # whether only an option that selects the step's input is meant

    @classmethod
    def parse(cls, text: str) -> _Override:
        key, equals, value = text.partition("=")
        step, _, option = key.strip().rpartition(".")
        if not equals or not option:
            expected = "--set option=value or step.option=value"
            raise UsageError(f"--set {text!r} is not an assignment.", expected=expected)
        # Values are YAML, but one that YAML takes for something else is still a text.
        located = locate(read_located(value, f"--set {text}").plain())
        return cls(f"--set {text}", step or None, option.replace("-", "_"), located)

    def fits(self, name: str, specs: Mapping[str, OptionSpec]) -> bool:
        """Whether a step of this name and with these options is meant."""
        if self.step not in (None, name) or self.option not in specs:
            return False
        return specs[self.option].selects_input or not self.inputs_only


class _Reader:
    """Reads the entries of ``steps`` one after another."""

    def __init__(self, where: str, overrides: list[_Override]) -> None:
        self.where = where
        self.overrides = overrides
        self.defaults: Options = {}
        self.used: set[str] = set()
        self.lines: dict[str, int] = {}
        self.resolved: list[dict[str, Any]] = []

    def error(self, what: str, line: int, **details: Any) -> RecipeError:
        """Return a complaint with its line, or with ``--set`` where it has none."""
        return RecipeError(what, where=f"{self.where}, line {line}" if line else "--set", **details)

    def mapping(self, node: Located, what: str) -> Options:
        """Return the value of a node that has to be a mapping: ``image-size`` is ``image_size``."""
        if isinstance(node.value, dict):
            return {key.replace("-", "_"): value for key, value in node.value.items()}
        got = "nothing" if node.value is None else repr(node.plain())[:80]
        expected = "lines of the form 'key: value'"
        raise self.error(f"{what} has to be a mapping.", node.line, expected=expected, got=got)

    def check_keys(self, given: Options, known: Collection[str], what: str) -> None:
        """Complain about the first key that is not known, naming its line and the nearest one."""
        for key, node in given.items():
            if key not in known:
                what, hint = f"{what} has no {key!r}.", did_you_mean(key, known)
                listed = ", ".join(known) or "nothing"
                raise self.error(what, node.line, expected=listed, next_step=hint)

    def name(self, node: Located) -> str:
        """Return a name; it becomes part of file names and of task names."""
        name = str(node.plain())
        if not is_name(name):
            raise self.error(f"{name!r} cannot be a name.", node.line, expected=A_NAME)
        return name

    def read_step(self, entry: Located) -> RecipeStep:
        """Return one step with its variants."""
        given = self.mapping(entry, "A step")
        if "step" not in given:
            expected, got = f"step: {' | '.join(STEPS.names())}", ", ".join(given) or "nothing"
            what = "An entry of 'steps' does not name its step."
            raise self.error(what, entry.line, expected=expected, got=got)
        try:
            kind = STEPS.get(str(given["step"].plain()))
        except UsageError as error:
            raise self._located(error, given["step"].line) from error
        name = self.name(given["name"]) if "name" in given else kind.name
        if name in self.lines:
            what, expected = f"Two steps are called {name!r}.", "a different name for each"
            got = f"the other is at line {self.lines[name]}"
            hint = f"add to one of them, for example: name: {name}2"
            raise self.error(what, entry.line, expected=expected, got=got, next_step=hint)
        self.lines[name] = entry.line
        shared, each = self._options(kind, name, given)
        resolved: dict[str, Any] = {"step": kind.name, "name": name}
        sources = None
        if "from" in given:
            sources = tuple(str(item.plain()) for item in self._list(given["from"], "from"))
            resolved["from"] = list(sources)
        resolved |= _plain(shared)
        if each:
            resolved["each"] = list(map(_plain, each))
        self.resolved.append(resolved)
        variants = self._variants(kind, shared, each, entry.line)
        return RecipeStep(name, kind, entry.line, sources, variants)

    def check_references(self, steps: Sequence[RecipeStep]) -> None:
        """Complain about overrides that met no step, and about names under ``from``."""
        for override in self.overrides:
            if override.text in self.used:
                continue
            if override.step is not None and override.step not in self.lines:
                hint = did_you_mean(override.step, self.lines)
                known = f"one of the steps {', '.join(self.lines)}"
            else:
                names = {name for step in steps for name in options_of(step.kind)}
                hint, known = did_you_mean(override.option, names), "an option of a step"
            what = f"{override.text} fits no step of the recipe."
            raise UsageError(what, where=self.where, expected=known, next_step=hint)
        for step in steps:
            for name in step.sources or ():
                if name not in self.lines:
                    what = f"There is no step {name!r} for {step.name!r} to start from."
                    known, hint = ", ".join(self.lines), did_you_mean(name, self.lines)
                    raise self.error(what, step.line, expected=known, next_step=hint)

    def _options(
        self, kind: type[Step], name: str, given: Options
    ) -> tuple[Options, list[Options]]:
        """Return the options of a step and those of its ``each`` entries, overrides worked in."""
        specs, what = options_of(kind), f"The step {kind.name!r}"
        own_keys = set(_STEP_KEYS) - set(specs)  # a step may have an option called grid
        own = {key: node for key, node in given.items() if key not in own_keys}
        self.check_keys(own, [*_STEP_KEYS, *specs], what)
        if "grid" in given and "grid" in own_keys:
            grid = self.mapping(given["grid"], "'grid'")
            tunable = [option for option, spec in specs.items() if spec.tunable]
            self.check_keys(grid, tunable, f"The grid of the step {kind.name!r}")
            if twice := sorted(set(grid) & set(own)):
                both = f"{twice[0]!r} is both under 'grid' and next to it."
                raise self.error(both, given["grid"].line)
            own |= grid
        each = []
        for entry in self._list(given["each"], "each") if "each" in given else ():
            each.append(self.mapping(entry, "An entry of 'each'"))
            self.check_keys(each[-1], specs, what)
        shared = {key: node for key, node in self.defaults.items() if key in specs} | own
        for override in self.overrides:
            if override.fits(name, specs):
                self.used.add(override.text)
                shared[override.option] = override.value
                each = [{k: v for k, v in e.items() if k != override.option} for e in each]
        return shared, each

    def _list(self, node: Located, key: str) -> list[Located]:
        if key == "from" and isinstance(node.value, str):
            return [node]
        if not isinstance(node.value, list):
            raise self.error(f"{key!r} takes a list.", node.line, got=repr(node.plain()))
        if not node.value:
            raise self.error(f"{key!r} is an empty list.", node.line)
        return node.value

    def _variants(
        self, kind: type[Step], shared: Options, each: list[Options], line: int
    ) -> tuple[Variant, ...]:
        specs = options_of(kind)
        variants: dict[Step, Variant] = {}
        outputs: dict[Hashable, Step] = {}
        labels = _distinguishing(each, specs)
        for alternative, prefix in zip(each or [{}], labels or [""], strict=True):
            options = shared | alternative
            axes = {}  # the values, one per task
            for key, node in options.items():
                listed = self._list(node, key) if isinstance(node.value, list) else []
                nested = any(isinstance(item.value, list) for item in listed)
                axes[key] = listed if listed and (nested or not specs[key].many) else [node]
            labelled = [
                zip(nodes, _labels(key, nodes) if len(nodes) > 1 else [""], strict=True)
                for key, nodes in axes.items()
            ]
            for pairs in product(*labelled):
                chosen = {key: node for key, (node, _) in zip(axes, pairs, strict=True)}
                label = ",".join(filter(None, (prefix, *(text for _, text in pairs))))
                try:
                    step = kind.from_mapping(_plain(chosen), bound=True)
                except UsageError as error:
                    wrong = chosen.get(error.option)
                    raise self._located(error, line if wrong is None else wrong.line) from error
                variants.setdefault(step, Variant(label, step))
                if not isinstance(output := step.output(), Path):  # files are compared by the plan
                    same = outputs.setdefault(output or Step.output(step), step)
                    self._check_distinct(options, step, same)
                if len(variants) > _MAX_TASKS:
                    what = "The lists of the step make too many tasks."
                    raise self.error(what, line, expected=f"at most {_MAX_TASKS}")
        return tuple(variants.values())

    def _check_distinct(self, options: Options, step: Step, other: Step) -> None:
        """Refuse two variants that would make the same, naming the option that they differ in."""
        for key, node in options.items():
            if (one := getattr(other, key)) != (two := getattr(step, key)):
                option, got = options_of(type(step))[key].flag[2:], f"{one!r} and {two!r}"
                what = f"The values of {option!r} would make the same result several times: "
                what += "they change no number."
                raise self.error(what, node.line, expected="one value", got=got)

    def _located(self, error: UsageError, line: int) -> RecipeError:
        """Return the same complaint with its line."""
        located = self.error(error.what, line)
        located.details |= {k: v for k, v in error.details.items() if k != "where"}
        return located


def _plain(options: Options) -> dict[str, Any]:
    return {key: node.plain() for key, node in options.items()}


def _labels(key: str, nodes: Sequence[Located]) -> list[str]:
    """Return short labels of values; paths by their last parts if these differ."""
    values = [node.plain() for node in nodes]
    texts = ["+".join(map(str, v)) if isinstance(v, list) else str(v) for v in values]
    short = [text.rpartition("/")[2] for text in texts]
    told_apart = len(set(short)) == len(set(texts))
    return [f"{key}={text}" for text in (short if told_apart else texts)]


def _distinguishing(each: list[Options], specs: Mapping[str, OptionSpec]) -> list[str]:
    """Return a short label per entry of ``each``: only keys that distinguish more of them.

    Options that change no number (a title, the name of a file) come last.
    """
    labels = [""] * len(each)
    keys = dict.fromkeys(key for entry in each for key in entry)
    for key in sorted(keys, key=lambda key: not specs[key].affects_result):
        having = [number for number, entry in enumerate(each) if key in entry]
        longer = list(labels)
        for number, text in zip(having, _labels(key, [each[n][key] for n in having]), strict=True):
            longer[number] = ",".join(filter(None, (labels[number], text)))
        if len(set(longer)) > len(set(labels)):
            labels = longer
    return labels
