"""Any scikit-learn classifier, named by its import path.

Its parameters are JSON-like, so a result records what was trained. A parameter that is itself an
estimator is written as ``{"estimator": PATH, "set": {PARAMETER: VALUE}}``, and a dict whose keys
are not strings as ``{"pairs": [[KEY, VALUE], …]}``.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import product
from typing import Any

from featpipe import fingerprint
from featpipe.errors import FeatpipeError, FitError, UnknownNameError, UsageError, did_you_mean
from featpipe.lazy import Lazy
from featpipe.probes.base import Probe
from featpipe.provenance import package_version
from featpipe.steps import STEPS, Context, option

metadata = Lazy("importlib.metadata")
sklearn_base, sklearn_utils = Lazy("sklearn.base"), Lazy("sklearn.utils")
pipeline, preprocessing = Lazy("sklearn.pipeline"), Lazy("sklearn.preprocessing")

_SCALERS = {"standard": "StandardScaler", "length": "Normalizer", "none": None}
_EXAMPLE = "sklearn.ensemble.RandomForestClassifier"


@STEPS.register
class AnyClassifier(Probe):
    """Train another scikit-learn classifier on stored features and test it once."""

    name = "probe"
    examples = (
        f"featpipe probe {_EXAMPLE} --set n_estimators=300 --grid max_depth=4,8",
        "featpipe probe sklearn.neural_network.MLPClassifier --set hidden_layer_sizes=[100]",
    )
    bytes_per_value = 24
    solver_per_class = True  # the cost of an ensemble is closer to that than to one solver's

    classifier: str = option(
        help=f"Import path of the classifier, such as {_EXAMPLE}.", positional=True
    )
    set: dict[str, Any] = option({}, help="A parameter of the classifier; may be repeated.")
    grid: dict[str, list[Any]] = option(
        {}, help="Values of a parameter to choose from on validation rows; may be repeated."
    )
    scale: str = option(
        "standard",
        help="How features are scaled: standard: each feature to mean 0 and standard deviation 1; "
        "length: each row to length 1; none.",
        choices=tuple(_SCALERS),
    )
    trust: bool = option(
        False,
        help="Allow a class from a package other than scikit-learn; importing it runs its code.",
        affects_result=False,
    )

    def check(self) -> None:
        """Import the classifier and refuse parameters that it does not have."""
        super().check()
        try:
            made = self._classifier()
            known = made.get_params()
            for name in (*self.set, *self.grid):
                if name.rpartition("__")[2] == "n_jobs":
                    what = "n_jobs does not affect the result, so it cannot be set here."
                    raise UsageError(what, got=name, next_step="--jobs N")
                if name not in known:
                    raise _unknown(type(made), name, known)
        except UsageError as error:
            error.option = error.option or "classifier"
            raise

    def _classifier(self) -> Any:
        made = _build(self.classifier, self.set, trust=self.trust)
        # Looked up in the class: some (StackingClassifier) have predict only once they are fitted.
        needed = ("fit", "predict", "get_params")
        lacking = [name for name in needed if not inspect.getattr_static(made, name, None)]
        if lacking or not sklearn_base.is_classifier(made):
            why = f"it has no {lacking[0]}()" if lacking else "it is another estimator"
            near = did_you_mean(self.classifier, _known_paths())
            raise UsageError(
                f"{self.classifier} is not a classifier: {why}.",
                expected=f"a classifier of scikit-learn, such as {_EXAMPLE}",
                next_step=near,
            )
        unset = (name for name, value in made.get_params().items() if value is None)
        seeds = [name for name in unset if name.rpartition("__")[2] == "random_state"]
        return made.set_params(**dict.fromkeys(seeds, self.seed))

    @property
    def _class_name(self) -> str:
        return self.classifier.rpartition(".")[2]

    @property
    def display_name(self) -> str:  # type: ignore[override]
        """The class and the parameters that were set."""
        return _in_words({"estimator": self.classifier, "set": self.set})

    @property
    def label(self) -> str:
        """Name and class."""
        return f"{self.name}-{self._class_name}"

    @property
    def tuned(self) -> str:
        """``grid``, if there is one."""
        return "grid" if self.grid else ""

    def candidates(self) -> tuple[Any, ...]:
        """Return all combinations, in the order in which the values were given."""
        every = product(*self.grid.values())
        return tuple(dict(zip(self.grid, values, strict=True)) for values in every)

    def parameters(self, value: Any) -> dict[str, Any]:
        """Return a combination as parameters of the pipeline."""
        return {f"classifier__{k}": _decoded(v, trust=self.trust) for k, v in value.items()}

    def recorded(self, value: Any) -> dict[str, Any]:
        """Return a combination as it is, by the names of its parameters."""
        return dict(value)

    def resolved(self, splits: list[Any]) -> dict[str, Any]:
        """Add the version of a classifier that is not scikit-learn's."""
        found = super().resolved(splits)
        package = self.classifier.partition(".")[0]
        if package == "sklearn":
            return found
        if owners := metadata.packages_distributions().get(package):
            version = package_version(owners[0])
        else:
            version = _source(type(self._classifier()))
        return {**found, "classifier": f"{self.classifier} {version}"}

    def estimator(self, n_rows: int, n_features: int) -> Any:
        """Scale the features, then fit the classifier."""
        scaler = _SCALERS[self.scale]
        scaling = [("scaler", getattr(preprocessing, scaler)())] if scaler else []
        return pipeline.Pipeline([*scaling, ("classifier", self._classifier())])

    def answer(self, splits: list[Any], context: Context) -> Any:
        """Train and test the classifier; its errors become errors of the step."""
        try:
            return super().answer(splits, context)
        except FeatpipeError:
            raise
        except Exception as error:  # a classifier may raise anything
            raise FitError(
                f"{self._class_name} failed on these rows with these parameters: {error}",
                next_step="change its parameters (--set, --grid), or --scale",
            ) from error


def describe(estimator: Any) -> dict[str, Any]:
    """Return the path of an estimator's class and the parameters that differ from their defaults.

    ``n_jobs`` is left out: it changes no number.

    Raises
    ------
    UsageError
        If a parameter, such as a function, cannot be written in JSON.

    Examples
    --------
    >>> from sklearn.svm import SVC
    >>> describe(SVC(C=2))
    {'estimator': 'sklearn.svm.SVC', 'set': {'C': 2}}
    """
    kind = type(estimator)
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
    given = {
        name: _encoded(value, f"{kind.__name__}({name}=…)")
        for name, value in estimator.get_params(deep=False).items()
        if name != "n_jobs" and repr(value) != repr(defaults.get(name))
    }
    return {"estimator": _public_path(kind), "set": given}


def _encoded(value: Any, where: str) -> Any:
    if hasattr(value, "get_params") and not isinstance(value, type):
        return describe(value)
    if type(value).__module__ == "numpy":
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_encoded(item, where) for item in value]
    if isinstance(value, Mapping):  # perhaps with keys that JSON lacks, such as class_weight's
        pairs = [[_encoded(key, where), _encoded(item, where)] for key, item in value.items()]
        return dict(pairs) if all(isinstance(key, str) for key, _ in pairs) else {"pairs": pairs}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(
        "A parameter cannot be stored with the result.",
        where=where,
        expected="a number, a string, an estimator, or a list or dict of these",
        got=repr(value)[:80],
    )


def _decoded(value: Any, *, trust: bool) -> Any:
    """Return the value of a JSON-like parameter."""
    if isinstance(value, Mapping):
        if isinstance(path := value.get("estimator"), str) and value.keys() <= {"estimator", "set"}:
            return _build(path, value.get("set") or {}, trust=trust)
        pairs = value["pairs"] if value.keys() == {"pairs"} else value.items()
        return {key: _decoded(item, trust=trust) for key, item in pairs}
    return [_decoded(item, trust=trust) for item in value] if isinstance(value, list) else value


def _build(path: str, parameters: Mapping[str, Any], *, trust: bool) -> Any:
    """Import a class and make an estimator."""
    kind = _find(path, trust=trust)
    values = {name: _decoded(value, trust=trust) for name, value in parameters.items()}
    known = inspect.signature(kind).parameters
    for name in values:
        if name.partition("__")[0] not in known:
            raise _unknown(kind, name, known)
    try:
        made = kind(**{name: value for name, value in values.items() if name in known})
        nested = {name: value for name, value in values.items() if name not in known}
        return made.set_params(**nested) if nested else made
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{path} does not accept these parameters: {error}",
            next_step=f"give them with --set; in Python: evaluate({kind.__name__}(…), train, test)",
        ) from error


def _in_words(value: Any) -> str:
    """Return a JSON-like parameter for a title: names of classes, keys of mappings."""
    if isinstance(value, list):
        if value and all(isinstance(item, list) and len(item) == 2 for item in value):
            # Named estimators, as in a VotingClassifier.
            value = [item[1] for item in value if item[1] is not None]
        return ", ".join(map(_in_words, value))
    if not isinstance(value, Mapping):
        return str(value)
    if "pairs" in value:
        return ", ".join(f"{key}: {_in_words(item)}" for key, item in value["pairs"])
    if "estimator" not in value:
        return "/".join(map(str, value))
    name = str(value["estimator"]).rpartition(".")[2]
    given = [f"{key}={_in_words(item)}" for key, item in (value.get("set") or {}).items()]
    if name == "Pipeline":  # its steps in order, without their names
        steps = (value.get("set") or {}).get("steps", ())
        return " → ".join(_in_words(step[-1]) for step in steps if step[-1] is not None)
    return ", ".join([name, *given]) if given else name


def _find(path: str, *, trust: bool) -> type:
    """Import the class of an estimator: public in scikit-learn, or of a trusted package."""
    module, _, name = path.rpartition(".")
    package = path.partition(".")[0]
    there = package in sys.modules or (package.isidentifier() and find_spec(package))
    if module and package.isidentifier() and not there:
        near = did_you_mean(path, _known_paths())
        install = f"pip install {package}, if that is its name, and add --trust"
        raise UsageError(
            f"{path!r} cannot be imported: the package {package!r} is not installed.",
            expected=f"an import path such as {_EXAMPLE}",
            next_step=f"{install}; {near}" if near else install,
        )
    if not trust and (not path.startswith("sklearn.") or "._" in path):
        advice = "add --trust if you trust the package: importing it runs its code"
        if path.startswith("sklearn.") or not module:
            advice = did_you_mean(path, _known_paths()) or advice
        raise UsageError(
            f"{path!r} is not a public scikit-learn class.",
            expected=f"an import path such as {_EXAMPLE}",
            next_step=advice,
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # another package may raise anything
        raise UnknownNameError(
            f"There is no class {path!r}: {error}", path, _known_paths(), expected=None
        ) from error
    estimator = isinstance(found, type) and issubclass(found, sklearn_base.BaseEstimator)
    public = estimator and found.__module__.startswith("sklearn.")
    if not isinstance(found, type) or not (trust or public):
        raise UsageError(f"{path!r} is not an estimator.", expected=f"a class such as {_EXAMPLE}")
    return found


def _known_paths() -> list[str]:
    """Return the import paths of scikit-learn's classifiers; takes a second."""
    return [_public_path(kind) for _, kind in sklearn_utils.all_estimators("classifier")]


def _public_path(kind: type) -> str:
    module = kind.__module__
    public = module.partition("._")[0] if module.startswith("sklearn.") else module
    return f"{public}.{kind.__qualname__}"


def _unknown(kind: type, name: str, known: Any) -> UnknownNameError:
    return UnknownNameError(f"{kind.__name__} has no parameter {name!r}.", name, known)


def _source(kind: type) -> str:
    """Return a fingerprint of the code of a class that belongs to no installed package."""
    try:
        return fingerprint.of_bytes(inspect.getsource(kind).encode())
    except (OSError, TypeError):
        raise UsageError(
            "The source code of the classifier cannot be found, so its results could not be "
            "distinguished from those of another version.",
            where=_public_path(kind),
            next_step="define the class in a file",
        ) from None
