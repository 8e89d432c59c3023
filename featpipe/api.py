"""The Python API: what the commands do, as functions and classes.

:mod:`featpipe` has what is for users; the rest is what the commands need. Every name is imported
when it is first used, so that ``featpipe --help`` is fast.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from featpipe.errors import FeatpipeError, UnknownNameError, UsageError
from featpipe.progress import Progress
from featpipe.steps import STEPS, Context, Outcome, options_of
from featpipe.workspace import Workspace

if TYPE_CHECKING:
    from torch.nn import Module

    from featpipe.audit.audit import Audit
    from featpipe.backbones import load_backbone
    from featpipe.bench import measure
    from featpipe.clean import files_of, find_unneeded
    from featpipe.datasets.dataset import open_source
    from featpipe.embedder import Embedder
    from featpipe.evaluation.result import Result, locate_result, scan_results
    from featpipe.evaluation.titles import unique_titles
    from featpipe.evaluation.verify import verify_result
    from featpipe.labelmap import LabelMap, builtin_maps
    from featpipe.prediction import Answer, write_answers
    from featpipe.reporting.step import changed_files, pages_with_digests
    from featpipe.statistics.comparison import Comparison, compare
    from featpipe.store import FeatureStore, scan_stores
    from featpipe.store.export import export_store
    from featpipe.template import write_recipe

# Of each module, below featpipe, the names that are here.
_HOMES = {
    "audit.audit": "Audit", "backbones": "load_backbone", "bench": "measure",
    "clean": "files_of find_unneeded", "datasets.dataset": "open_source", "embedder": "Embedder",
    "evaluation.result": "Result locate_result scan_results",
    "evaluation.titles": "unique_titles",
    "evaluation.verify": "verify_result", "labelmap": "LabelMap builtin_maps",
    "prediction": "Answer write_answers", "reporting.step": "changed_files pages_with_digests",
    "statistics.comparison": "Comparison compare", "store": "FeatureStore scan_stores",
    "store.export": "export_store", "template": "write_recipe",
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Answer", "Audit", "Comparison", "Embedder", "FeatpipeError", "FeatureStore", "LabelMap",
    "Result", "builtin_maps", "changed_files", "compare", "evaluate", "export", "export_store",
    "extract", "files_of", "find_unneeded", "finetune", "load_backbone", "locate_result", "measure",
    "open_source", "pages_with_digests", "predict", "report", "scan_results",
    "scan_stores", "unique_titles", "verify_result", "write_answers", "write_recipe", "zeroshot",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"featpipe.{_HOME_OF[name]}"), name)


_Function = TypeVar("_Function", bound=Callable[..., Any])


def _typed(function: _Function) -> _Function:
    """Show the options of the step of this name, types and defaults, in place of ``**options``.

    That is what ``help``, editors and notebooks show; the step itself checks what it is given.
    """
    own, shown = inspect.signature(function), inspect.formatannotation
    *named, rest = own.parameters.values()
    options = [
        inspect.Parameter(name, rest.KEYWORD_ONLY, default=one.default, annotation=shown(one.type))
        for name, one in options_of(STEPS.get(function.__name__)).items()
        if name not in own.parameters
    ]
    function.__signature__ = own.replace(parameters=[*named, *options])  # type: ignore[attr-defined]
    return function


def _run(
    name: str,
    options: Mapping[str, Any],
    workspace: str | os.PathLike[str] | None,
    progress: Progress | None = None,
    jobs: int = -1,
) -> Outcome:
    step = STEPS.get(name).from_mapping(options)
    step.check_requirements()
    return step.run(Context(Workspace.find(workspace), progress or Progress.find(), jobs))


@_typed
def extract(  # noqa: PLR0913 - a model has a name, or is a module with four properties
    dataset: str | Iterable[Any],
    model: str | None = None,
    *,
    labels: Iterable[Any] | None = None,
    backbone: Module | None = None,
    transform: Callable[[Any], Any] | None = None,
    name: str | None = None,
    fingerprint: str | None = None,
    workspace: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[FeatureStore]:
    """Embed a dataset; return one sealed store per split, the training split first.

    What is up to date is not computed again; an interrupted extraction continues.

    Parameters
    ----------
    dataset : str or iterable of images
        Name, or ``"folder:PATH"``, ``"csv:PATH"``, ``"npz:PATH"``, ``"wds:PATH"``, or a URL such as
        ``"folder:s3://BUCKET/PATH"``; or images: paths, PIL images or arrays (height, width, 3) or
        (height, width), uint8.
    model : str, optional
        Name of the backbone, as ``featpipe models`` lists it; ``"timm:NAME"``.
    labels : iterable of str or int, optional
        With images: their classes; ``None`` or -1 for an unlabelled one.
    backbone : torch.nn.Module, optional
        A module in the place of a name; its output, or any layer of it, is stored.
    transform : callable, optional
        With a module: makes its input, a float tensor (3, S, S), of a PIL image; or a
        :class:`~featpipe.backbones.preprocessing.Preprocessing`.
    name : str, optional
        With a module: its name, also in tables; default: that of its class.
    fingerprint : str, optional
        With a module: a text that changes when the features do; default: made of the state dict,
        and of what module and transform print as.
    workspace : path, optional
        Where stores are kept; default: the current folder.
    progress : Progress, optional
        Receives events; default: bars in a notebook, nothing elsewhere.
    **options
        As of ``featpipe extract``: ``split``, ``weights``, ``layer``, ``limit`` …

    Raises
    ------
    FeatpipeError
        If a name is unknown, an image or weights file cannot be read, the disk is full …
    """
    if (backbone is None) != (transform is None) or (backbone is None) == (model is None):
        expected = "the name of a model; or backbone= and transform=, a module and its transform"
        raise UsageError("What embeds the images?", expected=expected)
    if backbone is None and (name or fingerprint):
        what = "name= and fingerprint= describe a module, and there is none."
        expected = "backbone= and transform= with them, or neither of the two"
        got = f"model={model!r}, {'name' if name else 'fingerprint'}={name or fingerprint!r}"
        raise UsageError(what, expected=expected, got=got)
    if not isinstance(dataset, str):
        from featpipe.datasets.given import register_images  # noqa: PLC0415 - brings NumPy

        dataset = register_images(dataset, labels)
    elif labels is not None:
        what = "A dataset has its own labels."
        raise UsageError(what, expected="labels= with a list of images", got=dataset)
    if backbone is not None and transform is not None:
        from featpipe.backbones.module import register_module  # noqa: PLC0415 - brings torch

        name = name or type(backbone).__name__
        model = register_module(backbone, transform, name, fingerprint)
    asked = {"dataset": dataset, "model": model, **options}
    outcome = _run("extract", asked, workspace, progress)
    return [__getattr__("FeatureStore")(path) for path in outcome.paths]


def evaluate(
    method: Any,
    train: FeatureStore | Sequence[FeatureStore],
    test: FeatureStore | None = None,
    *,
    workspace: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    jobs: int = -1,
    **options: Any,
) -> Result:
    """Train and test a method on stored features, and save the result in the workspace.

    Parameters
    ----------
    method : str or estimator
        ``"svm"``, ``"logistic"``, ``"knn"``, ``"centroid"`` or ``"zeroshot"``; or an unfitted
        classifier that keeps scikit-learn's contract, whose ``n_jobs`` is ignored.
    train : FeatureStore, or sequence of FeatureStore
        The training rows; or the stores of all splits, as :func:`extract` returns them.
    test : FeatureStore, optional
        The dataset's own test rows; without it the protocol splits the rows of ``train``.
    workspace : path, optional
        Where results are kept; default: the current folder.
    progress : Progress, optional
    jobs : int
        Worker processes; ``-1`` means one per core. Never changes a number.
    **options
        As of the command: ``protocol``, ``c``, ``policy``, ``train_per_class`` …; for an
        estimator: ``grid``, its parameters with lists of values, and ``scale``.

    Raises
    ------
    FeatpipeError
        If an option is wrong, or the rows cannot validly train or test a classifier.
    """
    if hasattr(method, "get_params") and not isinstance(method, type):
        from featpipe.probes.any_classifier import describe  # noqa: PLC0415 - like all names here

        described = describe(method)
        own = {"classifier": described["estimator"], "set": described["set"], "trust": True}
        method, options = "probe", own | options
    if not isinstance(method, str):
        expected = "a name such as 'svm', or an unfitted classifier: RandomForestClassifier()"
        raise UsageError("This is no method.", expected=expected, got=repr(method)[:200])
    evaluated = [
        s.name for s in STEPS if s.needs and s.needs.output == "features" and "result" in s.makes
    ]
    if method not in evaluated:
        raise UnknownNameError(f"There is no method named {method!r}.", method, evaluated)
    listed = train if test is None and isinstance(train, Sequence) else []
    if listed and all(hasattr(store, "manifest") for store in listed):
        from featpipe.evaluation.stores import train_and_test  # noqa: PLC0415 - brings NumPy

        train, test = train_and_test(listed)
    stores: dict[str, Any] = {"train": train} | ({} if test is None else {"test": test})
    if wrong := [f"{name}={s!r}" for name, s in stores.items() if not hasattr(s, "manifest")]:
        what, got = "A method is trained and tested on feature stores.", ", ".join(wrong)
        expected = "train, test = extract(DATASET, MODEL), or FeatureStore(PATH)"
        hint = f"evaluate({method!r}, train, test)"
        raise UsageError(what, expected=expected, got=got, next_step=hint)
    paths = {name: store.path for name, store in stores.items()}
    outcome = _run(method, {**paths, **options}, workspace, progress, jobs)
    return __getattr__("Result").load(outcome.paths[0])


@_typed
def zeroshot(
    train: FeatureStore | Sequence[FeatureStore],
    test: FeatureStore | None = None,
    *,
    workspace: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Test the backbone's own classifier on stored logits: ``evaluate("zeroshot", …)``."""
    return evaluate("zeroshot", train, test, workspace=workspace, progress=progress, **options)


@_typed
def finetune(
    dataset: str,
    model: str,
    *,
    workspace: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Train a new head or more of a network, test it once, and save the result.

    Options are those of ``featpipe finetune``, which explains each (``featpipe finetune --help``);
    the rest is as of :func:`extract`.
    """
    outcome = _run("finetune", {"dataset": dataset, "model": model, **options}, workspace, progress)
    return __getattr__("Result").load(outcome.paths[0])


def predict(  # noqa: PLR0913 - which model, which images, and how
    model: str | os.PathLike[str] | Result,
    images: Any,
    *,
    workspace: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    device: str = "auto",
    runtime: str | None = None,
    weights: str | None = None,
) -> list[Answer]:
    """Classify new images with a trained model; ``pandas.DataFrame(answers)`` is a table.

    Parameters
    ----------
    model : Result, str or path
        A result; its name, or a part of it: ``"svm"`` is the latest of that name; or the file of a
        model.
    images : path, image, or iterable of them
        Files, and folders with all that is in them; or PIL images, or arrays of uint8 and shape
        (height, width, 3) or (height, width).
    workspace : path, optional
    progress : Progress, optional
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` …
    runtime : str, optional
        What computes the network; default: as for extraction.
    weights : str, optional
        The backbone's weights, where they are no longer where they were.

    Returns
    -------
    answers : list of Answer
        One for each image: ``label``, ``probability`` where it is calibrated, ``score``; or
        ``error``, why it could not be read.
    """
    from featpipe import prediction  # noqa: PLC0415 - brings torch

    files, known = prediction.images_of(images), Workspace.find(workspace)
    predictor = prediction.open_predictor(
        known, _name(model), weights, device, runtime, n_images=len(files)
    )
    progress = progress or Progress.find()
    if predictor.probe is not None:
        path, trained, _ = predictor.probe
        progress.note(f"model: {path.stem} ({trained.title})")
    return prediction.predict(predictor, files, progress)


def export(
    model: str | os.PathLike[str] | Result,
    out: str | os.PathLike[str],
    *,
    workspace: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write a probe with its backbone and preprocessing as one ONNX graph; return the files.

    ``model`` is as of :func:`predict`; beside ``out``, a name in ``.onnx``, come a model card and a
    script that classifies files. ``force`` replaces files that featpipe did not write, too.
    """
    from featpipe.onnx_export import export_onnx  # noqa: PLC0415 - brings torch

    return export_onnx(Workspace.find(workspace), _name(model), Path(out), weights, force=force)


def _name(model: str | os.PathLike[str] | Result) -> str:
    return os.fspath(model) if isinstance(model, str | os.PathLike) else model.name


@_typed
def report(
    results: Sequence[Result] | Result,
    out: str | os.PathLike[str],
    *,
    workspace: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Path:
    """Write results as one self-contained HTML page; return its path.

    Parameters
    ----------
    results : sequence of Result, or Result
        Saved results.
    out : path
        Name of the report, without ending.
    workspace : path, optional
    **options
        As of ``featpipe report``: ``title``, ``gallery`` …
    """
    from featpipe.evaluation.result import as_results  # noqa: PLC0415 - brings NumPy

    paths = [str(result.path) for result in as_results(results)]
    return _run("report", {"results": paths, "out": str(out), **options}, workspace).paths[0]
