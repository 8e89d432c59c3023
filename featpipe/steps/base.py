"""What a step is: one class gives the command, the YAML keys, the identity and the plan.

A step is a class whose options are made by :func:`featpipe.steps.options.option`. It says what it
needs and what it makes; everything that plans, names, skips or runs steps asks the step and never
its kind. Modules that define steps import nothing heavy: what a step does is imported in ``run``.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, dataclass_transform

from featpipe import fingerprint
from featpipe.errors import FeatpipeError, UnknownNameError, UsageError
from featpipe.lazy import check_installed
from featpipe.progress import SILENT, Progress
from featpipe.steps.options import options_of, plain
from featpipe.workspace import Workspace


@dataclass(frozen=True)
class Context:
    """What a step runs in: the workspace, where progress is reported, how many jobs."""

    workspace: Workspace = field(default_factory=Workspace.find)
    progress: Progress = SILENT
    jobs: int = -1  # worker processes; -1: one per core; never changes a number
    command: str = ""  # as the user wrote it, for the provenance
    recipe: Mapping[str, Any] | None = None  # the resolved recipe, kept with a result


LEFT_OUT = 3  # exit code of a strict step that left images out


@dataclass(frozen=True)
class Outcome:
    """How a step ended: what a worker process returns, ``--json`` prints and a tracker stores."""

    status: str  # done, up to date, failed, not run, interrupted, planned
    message: str  # what it did, or why it failed
    paths: tuple[Path, ...] = ()  # files it made or found
    facts: Mapping[str, Any] = field(default_factory=dict)  # the same as JSON-like data
    exit_code: int = 0
    table: list[dict[str, Any]] | None = None  # rows to show
    details: Mapping[str, str] = field(default_factory=dict)  # of a failure: where, expected …
    task: str = ""  # name of the recipe's task; empty for a command
    seconds: float = 0.0  # how long the task took

    @classmethod
    def failure(cls, error: FeatpipeError) -> Outcome:
        """Return the outcome of a step that raised an error."""
        facts = {"error": type(error).__name__}
        return cls("failed", error.what, (), facts, error.exit_code, details=error.details)

    @property
    def succeeded(self) -> bool:
        """Whether what depends on it can run."""
        return self.status in ("done", "up to date")

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-like values, facts at the top level, empty parts left out."""
        values = {**vars(self), "paths": list(map(str, self.paths))}
        values |= {"seconds": round(self.seconds, 2)}
        kept = ("status", "message", "paths")
        return {**values.pop("facts"), **{k: v for k, v in values.items() if v or k in kept}}


@dataclass(frozen=True)
class Status:
    """What is known about a step before it runs."""

    done: bool
    why: str  # why it is done or still to do
    key: str = ""  # first letters of what names its files, where that is known
    paths: tuple[Path, ...] = ()  # files of a step that is done, as its outcome would list them
    seconds: float | None = None  # what it is likely to take, if a similar step has run before
    n_bytes: float | None = None
    basis: str = ""  # what the time is estimated from


@dataclass(frozen=True)
class Needs:
    """What a step works on where other steps of a recipe make it."""

    output: str  # one of what steps make: "features", "result", "network", "pictures"
    each: bool = True  # one task for each step that makes it; else one for all of them


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Step:
    """Base of all steps; see the module's docstring.

    The options of a subclass are its parameters, by name; a step cannot be changed. The first line
    of a subclass's docstring is the help of its command.
    """

    name: ClassVar[str]  # of the command, and of the step in a recipe
    # Raised when the same options would give other numbers: when the code that computes them
    # changes, or a default. It is part of the identity.
    revision: ClassVar[int] = 1
    examples: ClassVar[tuple[str, ...]] = ()  # command lines for --help
    needs: ClassVar[Needs | None] = None  # what it works on; None if it opens images itself
    makes: ClassVar[tuple[str, ...]] = ()  # what other steps can work on
    # Outputs that have to exist before, if the recipe makes them from the same inputs.
    waits_for: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **values: Any) -> None:
        known = options_of(type(self))
        if unknown := [name for name in values if name not in known]:
            what = f"The step {self.name!r} has no option {unknown[0]!r}."
            raise UnknownNameError(what, unknown[0], known)
        self._require(values, bound=True)
        for name, spec in known.items():
            self.__dict__[name] = spec.parse(values.get(name, spec.default))
        self.check()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed: use replace({name}=…)")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({options})"

    def check(self) -> None:
        """Refuse options that contradict each other; a step that has such says which."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, bound: bool = False) -> Self:
        """Make a step from YAML keys (``image_size`` or ``image-size``); each is parsed once.

        With ``bound``, options that a recipe fills in from another step's output may be missing.
        """
        normal = {str(key).replace("-", "_"): value for key, value in values.items()}
        if len(normal) != len(values):
            what = f"The step {cls.name!r} has an option written twice, with '-' and with '_'."
            raise UsageError(what, got=", ".join(map(str, values)))
        step = cls(**normal)
        cls._require(normal, bound=bound)
        return step

    @classmethod
    def _require(cls, values: Mapping[str, Any], *, bound: bool) -> None:
        """Refuse values without the required options; ``bound`` ones may still be filled in."""
        specs = options_of(cls).values()
        needed = [spec.name for spec in specs if spec.required and not (bound and spec.bound)]
        if missing := [name for name in needed if name not in values]:
            raise UsageError(f"The step {cls.name!r} needs {', '.join(missing)}.")

    def replace(self, **options: Any) -> Self:
        """Return a copy with other values of some options, which are taken as they are."""
        other = copy.copy(self)
        other.__dict__.update(options)
        return other

    def settings(self) -> dict[str, Any]:
        """Return all options as JSON-like values."""
        return {name: plain(getattr(self, name)) for name in options_of(type(self))}

    def requirements(self) -> Iterable[tuple[str, str]]:
        """Return the modules that these options need beyond the installation, with their extra."""
        return ()

    def check_requirements(self) -> None:
        """Raise ``MissingExtraError`` unless everything that the options need is installed."""
        for package, extra in self.requirements():
            check_installed(package, extra)

    def identity(self, inputs: Mapping[str, Any], **resolved: Any) -> dict[str, Any]:
        """Return what the numbers follow from, JSON-like: equal identities, equal numbers.

        ``inputs`` are fingerprints of what the step works on, and versions of what computes;
        ``resolved``, options whose value was chosen automatically, as what they meant.
        """
        values = {**self.__dict__, **resolved}
        options = {
            name: plain(values[name])
            for name, spec in options_of(type(self)).items()
            if spec.affects_result and not spec.selects_input and values[name] != spec.neutral
        }
        own = {"step": self.name, "revision": self.revision}
        return {**own, "inputs": dict(inputs), "options": options}

    def key(self, inputs: Mapping[str, Any], **resolved: Any) -> str:
        """Return the fingerprint (hex) of :meth:`identity`, which names results."""
        return fingerprint.of_mapping(self.identity(inputs, **resolved))

    # What a plan asks.

    def has_inputs(self) -> bool:
        """Whether the options themselves name the inputs, so that no other step is needed."""
        return self.needs is None

    def accepts(self, producer: Step) -> bool:
        """Whether this step, in a recipe, is meant to work on what ``producer`` makes."""
        return True

    def planned(self, producer: Step) -> Self:
        """Return the step with the options that follow from the step that it works on."""
        return self

    def placed(self, recipe: str, task: str, workspace: Workspace) -> Self:
        """Return the step with the names of files that follow from the recipe and the task.

        ``task`` is part of a path; empty if it is the only one of its kind.
        """
        return self

    def bind(self, inputs: Sequence[Sequence[Path]]) -> Self:
        """Return the step with its inputs filled in: the files of each task that it needs."""
        return self

    def output(self) -> Hashable:
        """Return what distinguishes its files from those of another task on the same inputs.

        Two tasks of a recipe with equal outputs would overwrite each other. A ``Path`` is the file
        itself, whatever the inputs; ``None`` means that nothing is written.
        """
        kept = [s for s in options_of(type(self)).values() if s.affects_result or s.selects_input]
        return tuple(str(getattr(self, spec.name)) for spec in kept)

    def status(self, context: Context) -> Status:
        """Look at the disk and say whether the step is done; torch is not imported.

        A FeatpipeError says why that cannot be known, because an input is missing for example.
        """
        return Status(False, "written each time")

    def estimate(self, context: Context) -> tuple[float, float | None, str] | None:
        """Return seconds, bytes and their basis, from earlier runs, or ``None``."""
        return None

    def run(self, context: Context) -> Outcome:
        """Run the step."""
        raise NotImplementedError
