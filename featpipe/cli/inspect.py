"""Commands that show what there is; ``predict`` and ``export``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from featpipe.backbones import MODELS
from featpipe.cli.console import Session, command, plainly
from featpipe.cli.results import results
from featpipe.datasets import DATASETS
from featpipe.lazy import Lazy
from featpipe.registry import Registry
from featpipe.steps import LEFT_OUT, Outcome
from featpipe.workspace import store_files

api = Lazy("featpipe.api")

_PATH = click.Path(path_type=Path)
_FEW = 12  # classes, or images that are left out, that are listed for people


def _listing(name: str, registry: Registry[Any], what: str) -> click.Command:
    @command(name, help=f"List the {what}.", epilog=f"Example: featpipe {name}")
    def listing(session: Session) -> None:
        rows = [
            {"name": name, "also": ", ".join(registry.aliases_of(name)), "what": summary}
            for name, summary in registry.summaries().items()
        ]
        session.finish(Outcome("done", "", table=rows))

    return listing


models = _listing("models", MODELS, "backbones")
datasets = _listing("datasets", DATASETS, "datasets")


@command(epilog="Example: featpipe bench --model resnet50")
@click.option("--model", default="resnet50", show_default=True, help="Backbone, random weights.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
def bench(session: Session, model: str, device: str) -> None:
    """Measure this machine: decoding, each runtime and precision, the disk; in a minute or two."""
    rows, taken = api.measure(model, device, session.workspace.root, session.console.progress)
    session.finish(Outcome("done", taken, table=rows))


@command(epilog="Examples: featpipe clean · featpipe clean --yes")
@click.option("--yes", is_flag=True, help="Remove what is listed.")
def clean(session: Session, *, yes: bool) -> None:
    """List or remove what is not needed: leftovers, unfinished stores, files without a result.

    Nothing else is touched, and nothing that featpipe did not write.
    """
    found = api.find_unneeded(session.workspace)
    sizes = {one: one.n_bytes / 1e6 for one in found}
    rows = [
        {"path": str(one.path), "MB": round(mb, 2), "why": one.why} for one, mb in sizes.items()
    ]
    total = f"{len(found)} files, {sum(sizes.values()):.2f} MB"
    for one in found if yes else ():
        one.remove()
    message = f"removed {total}" if yes else f"{total}; remove them: featpipe clean --yes"
    if not found:
        message = f"nothing to remove below {session.workspace.root}"
    session.finish(Outcome("done", message, tuple(one.path for one in found), table=rows))


@command(
    epilog="Examples: featpipe predict svm scan.png · featpipe predict resnet50-svm photos "
    "--out answers.csv"
)
@click.argument("model")
@click.argument("images", nargs=-1, required=True, type=_PATH)
@click.option("--weights", help="The backbone's weights, if they were moved.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option("--runtime", help="What runs the backbone [default: what ran it for the features].")
@click.option("--strict", is_flag=True, help="Exit with code 3 if an image could not be read.")
@click.option("-o", "--out", type=_PATH, help="Write the answers to this .csv, .parquet or .json.")
@click.option("--force", is_flag=True, help="Replace a file that featpipe did not write, too.")
def predict(
    session: Session,
    model: str,
    images: Sequence[Path],
    *,
    strict: bool,
    out: Path | None,
    force: bool,
    **where: Any,
) -> None:
    """Classify new images, or all in a folder, with a trained model.

    MODEL is the name of a result or a part of it (svm: the latest of that name), or the file of a
    model. Probabilities of probes are calibrated on training rows.
    """
    place, progress = session.workspace.root, session.console.progress
    answers = api.predict(model, images, workspace=place, progress=progress, **where)
    lines = [f"{answer.image}: {answer.error}" for answer in answers if answer.error]
    exit_code = LEFT_OUT if strict and lines else int(len(lines) == len(answers))
    if lines:
        lines.append(f"warning: {len(lines)} of {len(answers)} images could not be read")
    calibrated = any(answer.probability is not None for answer in answers)
    kind = "probability" if calibrated else "score"
    rows = [
        {"image": a.image, "class": a.label or "unreadable", kind: getattr(a, kind)}
        for a in answers
    ]
    facts = {"answers": [asdict(answer) for answer in answers]}
    if out is None:
        session.finish(Outcome("done", "\n".join(lines), (), facts, exit_code, rows))
    api.write_answers(answers, out, force=force)
    lines.append(f"{len(answers)} answers → {out}")
    session.finish(Outcome("done", "\n".join(lines), (out,), facts, exit_code))


@command("export", epilog="Example: featpipe export svm model.onnx")
@click.argument("model")
@click.argument("out", type=_PATH)
@click.option("--weights", help="The backbone's weights, if they were moved.")
@click.option("--force", is_flag=True, help="Replace files that featpipe did not write, too.")
def export_model(session: Session, model: str, out: Path, **how: Any) -> None:
    """Write a trained probe with its backbone as one ONNX graph, with a model card and a script.

    MODEL is as in featpipe predict. The graph takes images of the network's size and gives
    probabilities; the script beside it prepares image files, with Pillow.
    """
    paths = api.export(model, out, workspace=session.workspace.root, **how)
    session.finish(Outcome("done", "\n".join(map(str, paths)), tuple(paths)))


@click.command(epilog='Example: eval "$(featpipe completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "featpipe", "_FEATPIPE_COMPLETE").source())


@click.group()
def store() -> None:
    """List, describe, verify and export feature stores."""


@command("list", store, epilog="Example: featpipe store list")
def list_stores(session: Session) -> None:
    """List the sealed, unfinished and damaged stores of the workspace."""
    folder = session.workspace.features
    stores, damaged = api.scan_stores(folder)
    columns = ("dataset", "split", "model", "layers", "images", "MB", "state", "path")
    cells: list[tuple[Any, ...]] = []
    for one in stores:
        dataset, model = one.manifest["dataset"], one.manifest["backbone"]["model"]
        size = len(one), round(one.n_bytes / 1e6, 1), "sealed", str(one.path)
        cells.append((dataset["name"], dataset["split"], model, ", ".join(one.layers), *size))
    others = [(error.what.rstrip("."), error.details.get("where")) for error in damaged]
    others += [("unfinished", str(path)) for path in store_files(folder, "*.h5.partial")]
    cells += [(*[None] * 6, state, place) for state, place in others]
    rows = [dict(zip(columns, row, strict=True)) for row in cells]
    message = "" if rows else f"no store in {folder}; make one: featpipe extract --help"
    session.finish(Outcome("done", message, table=rows))


@command(
    group=store, epilog="Example: featpipe store info data/features/digits/glyphnet/train-….h5"
)
@click.argument("path", type=_PATH)
def info(session: Session, path: Path) -> None:
    """Describe one store: what it holds and what it was made with; --json says all of it."""
    found = api.FeatureStore(path)
    dataset, backbone, run = found.manifest["dataset"], found.manifest["backbone"], found.run
    weights, labels = backbone.get("weights", {}), Counter(found.labels.tolist())
    labelled, shapes = len(found) - labels[-1], found.shapes
    facts: dict[str, Any] = {
        "path": str(found.path),
        "fingerprint": found.fingerprint,
        "images": len(found),
        "labelled": labelled,
        "skipped": {found.ids[row]: reason for row, reason in sorted(found.skipped.items())},
        "classes": list(found.classes),
        "folds": len(found.folds),
        "groups": len(set(found.groups)),
        "layers": {name: [len(found), *shapes[name]] for name in found.layers},
        "logits": [len(found), *shapes["logits"]] if "logits" in shapes else None,
        "bytes": found.n_bytes,
        "manifest": found.manifest,
        "run": run,
    }
    classes = [f"{name} ({labels[label]})" for label, name in enumerate(found.classes)]
    skipped = [f"{name}: {reason}" for name, reason in facts["skipped"].items()]
    people = {
        "file": f"{found.path}, {found.n_bytes / 1e6:.2f} MB",
        "images": f"{len(found)} of {dataset['name']} {dataset['split']}, {labelled} labelled",
        "classes": [*classes[:_FEW], *([f"… {len(classes)} in all"] if classes[_FEW:] else [])],
        "groups": f"{facts['groups']} by {dataset.get('grouped_by')}" if found.groups else None,
        "folds": facts["folds"],
        "left out": "\n".join(skipped[:_FEW] + ["…"] * bool(skipped[_FEW:])),
        "model": [backbone["model"], f"weights {weights.get('name', weights)}"],
        "layers": [f"{name} {' × '.join(map(str, shape))}" for name, shape in shapes.items()],
        "stored as": found.manifest["dtype"],
        "images prepared": plainly(backbone.get("preprocessing", {})),
        "made": f"{run['created']} in {run['seconds']:.1f} s, {run['images_per_s']:.0f} images/s, "
        f"on {run['device']}",
        "made by": run.get("command"),
        "fingerprint": found.fingerprint,
    }
    session.describe(people, (path,), facts)


@command(group=store, epilog="Example: featpipe store verify data/features/digits/glyphnet/*.h5")
@click.argument("paths", nargs=-1, type=_PATH)
def verify(session: Session, paths: tuple[Path, ...]) -> None:
    """Read stores completely and compare them with their digests; all of them by default."""
    folders = session.workspace.features, session.workspace.activations
    found = paths or tuple(path for folder in folders for path in store_files(folder))
    session.check_files("stores", found, lambda path: api.FeatureStore(path).verify())


@command(group=store, epilog="Example: featpipe store export FILE.h5 features.parquet")
@click.argument("path", type=_PATH)
@click.argument("target", type=_PATH)
@click.option("--layer", help="Layer to export [default: the first].")
@click.option("--force", is_flag=True, help="Replace a file that featpipe did not write, too.")
def export(session: Session, path: Path, target: Path, layer: str | None, *, force: bool) -> None:
    """Write ids, labels and features as .npz, .parquet, .csv or .h5."""
    rows = api.export_store(api.FeatureStore(path), target, layer, force=force)
    session.finish(Outcome("done", f"{rows} rows → {target}", (target,)))


@click.group()
def labelmap() -> None:
    """Show and check label maps."""


@command(group=labelmap, epilog="Example: featpipe labelmap show imagenet_to_stl10 --target cat")
@click.argument("name", required=False)
@click.option("--target", help="Only source classes of this target ('other' too).")
def show(session: Session, name: str | None, target: str | None) -> None:
    """List the built-in maps, or the rows of one map (a name or a CSV file)."""
    if name is None:
        maps = [
            {"name": one.name, "source classes": len(one.rows), "other": len(one.sources["other"])}
            | {"without source": ", ".join(one.without_source)}
            for one in map(api.LabelMap.load, api.builtin_maps())
        ]
        session.finish(Outcome("done", "", table=maps))
    rows = [
        {"id": row.source_id, "source": row.source_name, "target": row.target}
        | {"disputed": row.disputed, "why": row.why}
        for row in api.LabelMap.load(name).rows
        if target in (None, row.target)
    ]
    session.finish(Outcome("done", "" if rows else f"no source class is {target!r}", table=rows))


@command(group=labelmap, epilog="Example: featpipe labelmap check my_map.csv")
@click.argument("name")
def check(session: Session, name: str) -> None:
    """Check that a map is complete and unambiguous; say what maps to each target."""
    found = api.LabelMap.load(name)
    rows = [
        {"target": name, "source classes": len(ids), "which": ", ".join(ids) * (name != "other")}
        for name, ids in found.sources.items()
    ]
    gaps = f"; without source: {', '.join(found.without_source)}" if found.without_source else ""
    message = f"{found.name}: {len(found.rows)} source classes, each mapped once{gaps}"
    session.finish(Outcome("done", message, table=rows))


INSPECTION: Sequence[click.Command] = (
    predict, export_model, results, store, labelmap, models, datasets, bench, clean, completion
)  # fmt: skip
