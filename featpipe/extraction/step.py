"""The steps ``extract`` and ``embed``, and the options of every step that opens images."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe import backbones
from featpipe.cluster import OnCluster, gpus
from featpipe.datasets import DATASETS, check_installed, short_name, slug
from featpipe.errors import UsageError
from featpipe.fingerprint import FileHashes
from featpipe.steps import (
    LEFT_OUT,
    STEPS,
    Context,
    Outcome,
    Status,
    Step,
    altered,
    option,
    options_of,
)
from featpipe.steps.grammar import device_name, grouping, table_file
from featpipe.urls import Place, check_protocol, is_url
from featpipe.workspace import user_path

if TYPE_CHECKING:
    from featpipe.backbones.runtime import Calibration
    from featpipe.datasets.source import ImageSource
    from featpipe.extraction.engine import Extraction

# Raised when the same images and options would give other numbers; 2: another file format.
EXTRACTION_VERSION = 2

# Options under the headings of --help.
in_images = partial(option, group="Images")
selecting = partial(option, group="Images", selects_input=True)
in_network = partial(option, group="Network")
in_machine = partial(option, group="Numbers and machine")
running = partial(in_machine, affects_result=False)
on_cluster = partial(running, group="Cluster")


class ImageStep(Step):
    """A step that opens the images of a dataset."""

    model: str = in_network(
        help="Network to use: a name of featpipe models, timm:NAME, hf:REPOSITORY …",
        registry=backbones.MODELS,
        selects_input=True,
    )
    dataset: str = selecting(
        help="Dataset: a name, folder:PATH (or URL), csv:PATH, npz:PATH, wds:PATH, "
        "torchvision:CLASS or hf:DATASET.",
        registry=DATASETS,
    )
    weights: str = in_network(
        "DEFAULT",
        help="DEFAULT, the name of published weights, a file, or none: random ones.",
        selects_input=True,
    )
    split: tuple[str, ...] | None = selecting(
        None, help="Splits to use, that of the training rows first; default: every labelled one."
    )
    data: Path | None = selecting(
        None, help="Folder to look for the dataset in before the workspace's data/raw."
    )
    classes: str | None = selecting(
        None, help="Only these classes: first:50, or names separated by commas."
    )
    limit: int | None = selecting(
        None, help="Only N images of each split, spread evenly over the classes.", minimum=1
    )
    split_seed: int = selecting(
        0, help="Seed of splits that the dataset itself leaves open.", seed=True
    )
    group_by: str | None = selecting(
        None,
        help="Images that must stay in the same split: folder, those of one folder; regex:PATTERN, "
        "those in whose ids the pattern (its first parentheses) matches the same text.",
        check=grouping,
    )
    download: bool = in_images(
        True, help="Download what is missing, if there is a connection.", affects_result=False
    )
    image_size: int | None = in_network(
        None, help="Side of the network's input; default: that of the weights.", minimum=1
    )
    fit: str = in_network(
        "auto",
        help="crop: resize the shorter side and crop the centre, as the weights were tested; "
        "whole: resize the whole image, ignoring its proportions; auto: crop, but without its "
        "margin where all images have one size that is not larger than the network's input.",
        choices=backbones.FITS,
    )
    decode: str = in_network(
        "full",
        help="scaled: JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, where that leaves "
        "at least twice the side they are resized to; faster, with slightly different features.",
        choices=("full", "scaled"),
    )
    on_error: str = in_images(
        "fail",
        help="What to do with an image that cannot be read: end, or leave it out with a note.",
        choices=("fail", "skip"),
        affects_result=False,
    )
    workers: int | None = running(
        None, help="Threads that read images; default: one per core.", minimum=1
    )
    strict: bool = in_images(
        False, help="Exit with code 3 instead of 0 if images were skipped.", affects_result=False
    )
    device: str = running("auto", help="auto, cpu, cuda, cuda:1 or mps.", check=device_name)
    runtime: str | None = in_machine(
        None,
        help="What runs the frozen network; auto or left out: OpenVINO on a CPU, where it is"
        " installed and the network is not tiny, else PyTorch.",
        registry=backbones.RUNTIMES,
    )

    def check_requirements(self) -> None:
        """Refuse missing packages, and weights of another model."""
        super().check_requirements()
        backbones.check_installed(self.model)
        check_installed(self.dataset)
        backbones.check_tensors(self.model, self.weights)

    def check(self) -> None:
        """Refuse a family without the name of a network, and a model with a superfluous one."""
        backbones.backbone_name(self.model)


def shard_place(value: str) -> None:
    """Check the URL of a folder for shards."""
    if not is_url(value):
        expected = "s3://bucket/folder, gs://bucket/folder, file:///folder …"
        raise UsageError(f"{value!r} is not a URL.", expected=expected)
    check_protocol(value)
    Place(value)


@STEPS.register
class Extract(OnCluster, ImageStep):
    """Embed a dataset with a frozen backbone into a feature store."""

    name = "extract"
    revision = EXTRACTION_VERSION
    makes = ("features",)
    examples = (
        "featpipe extract --model resnet50 --dataset stl10",
        "featpipe extract --model resnet18 --weights resnet18.safetensors --dataset folder:photos",
        "featpipe extract --model glyphnet --dataset digits",
    )

    layer: tuple[str, ...] | None = in_network(
        None,
        help="Layers whose activations are the features, such as layer3 or blocks.5:cls; default:"
        " the embedding.",
    )
    dtype: str = in_machine(
        "float32", help="Precision of the stored features.", choices=("float32", "float16")
    )
    precision: str = in_machine(
        "float32",
        help="Precision of the forward pass; its effect on the features is reported. int8 is "
        "calibrated on training images.",
        choices=backbones.PRECISIONS,
    )
    batch_size: int | None = running(
        None, help="Images per forward pass; auto or left out: chosen for the device.", minimum=1
    )
    shard_rows: int | None = running(
        None,
        help="Rows in each file of a store that is kept in shards; default: no shards, on a cluster"
        " 500 to 50,000 rows.",
        minimum=1,
    )
    shards_at: str | None = running(
        None,
        help="Folder at a URL, such as s3://bucket/features, for the shards instead of the"
        " workspace; they are downloaded when the features are read.",
        check=shard_place,
    )
    actors: int | None = on_cluster(
        None, help="Processes that embed; default: as many as fit on the nodes.", minimum=1
    )
    num_cpus: int = on_cluster(1, help="Cores of each actor.", minimum=1)
    num_gpus: float = on_cluster(
        0.0, help="GPUs of each actor; 0.5: two share one.", minimum=0, check=gpus
    )

    def output(self) -> Hashable:
        """Return what distinguishes its stores; runtimes that give torch's numbers do not."""
        if self.runtime is None:
            return super().output()
        runtime = backbones.effective_runtime(self.runtime, self.precision, self.device)
        return super(Extract, self.replace(runtime=runtime)).output()

    def check(self) -> None:
        """Refuse a location for shards of a store without shards."""
        super().check()
        if self.shards_at and self.engine == "local" and not self.shard_rows:
            what = "--shards-at is for a store in shards, which this is not."
            raise UsageError(what, next_step="add --shard-rows N, or --engine ray")

    def requirements(self) -> Iterator[tuple[str, str]]:
        """Return the packages that int8 and an explicitly requested runtime need."""
        if self.runtime == "openvino" or self.precision == "int8":
            yield "openvino", "openvino"
        if self.precision == "int8":
            yield "nncf", "int8"

    def request(
        self,
        hashes: FileHashes,
        sources: Sequence[ImageSource] = (),
        calibration: Calibration | None = None,
        *,
        fetch: bool = False,
    ) -> dict[str, Any]:
        """Return everything but the images that changes the numbers, automatic choices resolved.

        torch is imported only if the model, its weights or the runtime are those of a family or of
        another package, the model has no published weights, or the precision is not float32.
        Weights in a family's cache are identified by their content: ``fetch``: whether they may be
        downloaded for it.
        """
        how = {"download": self.download, "fetch": fetch}
        inputs = {
            "model": backbones.backbone_name(self.model),
            "weights": backbones.weights_identity(self.model, self.weights, hashes, **how),
            "preprocessing": backbones.PREPROCESSING_VERSION,
        }
        if calibration is not None:
            inputs["calibration"] = calibration.fingerprint
        chosen = backbones.automatic(self.model, self.weights, download=self.download)
        side = self.image_size or chosen.image_size
        sizes = (source.size for source in sources)  # read only if they are needed
        fit = backbones.resolve_fit(self.fit, side, sizes, chosen.fit)
        return self.identity(
            inputs,
            layer=tuple(dict.fromkeys(self.layer or (chosen.layer,))),
            image_size=side,
            fit=backbones.fit_identity(fit, margin=chosen.margin),
            runtime=backbones.effective_runtime(self.runtime, self.precision, self.device),
        )

    def extraction(self, context: Context, *, download: bool) -> Extraction:
        """Return the extraction of the requested stores, existing or not."""
        if self.engine == "ray" and self.device == "auto":
            device = "cuda" if self.num_gpus else "cpu"
            return self.replace(device=device).extraction(context, download=download)
        from featpipe.datasets.dataset import SourceRequest  # noqa: PLC0415 - brings NumPy
        from featpipe.extraction import batches, engine, on_ray, shards  # noqa: PLC0415 - NumPy, h5py

        hashes, weights = FileHashes(context.workspace.hashes), user_path(self.weights)
        dataset = slug(short_name(self.dataset))
        model = backbones.folder_name(backbones.backbone_name(self.model))
        images = SourceRequest.of(self)
        sources = images.open_all(self.split, context, download=download)
        calibration = None
        if self.precision == "int8":
            calibration = engine.calibration(images, sources, context, download=download)
        sharding = shards.Sharding(self.shard_rows, self.shards_at or "")
        made_by: Any = engine.Extraction
        if self.engine == "ray":
            found = {source.split: source.fingerprint for source in sources}
            order = on_ray.Order(self, context.workspace.root.resolve(), found)
            made_by = partial(on_ray.ClusterExtraction, order=order, address=self.address)
        return made_by(
            images=images,
            sources=sources,
            folder=context.workspace.features / dataset / model,
            open_embedder=lambda: backbones.load_backbone(
                *(self.model, self.weights, self.device, self.image_size, self.fit),
                sizes=(source.size for source in sources),
                decode=self.decode,
                runtime=self.runtime,
                precision=self.precision,
                calibration=calibration,
                hashes=hashes,
                progress=context.progress,
                download=self.download,
            ),
            options=batches.ExtractOptions(
                self.layer or (), self.dtype, self.batch_size, self.on_error, self.workers
            ),
            context=context,
            sharding=sharding if self.shard_rows or self.engine == "ray" else None,
            request=self.request(hashes, sources, calibration, fetch=download),
            record={
                "model": backbones.located(self.model),
                "weights": str(weights.resolve()) if weights.is_file() else self.weights,
            },
        )

    def status(self, context: Context) -> Status:
        """Return which splits are embedded; nothing is downloaded and torch is not imported."""
        return self.extraction(context, download=False).status()

    def run(self, context: Context) -> Outcome:
        """Embed every split whose store does not exist yet."""
        extraction = self.extraction(context, download=self.download)
        stores = extraction.stores()
        status = "done" if extraction.fresh else "up to date"
        lines, facts = [status], []
        for store in stores:
            dataset, n = store.manifest["dataset"], len(store.skipped)
            speed = f", {store.run['images_per_s']} images/s" if extraction.fresh else ""
            left_out = f" (unreadable images left out: {n})" if n else ""
            name = f"{dataset['name']} {dataset['split']}"
            lines.append(f"{name}: {len(store) - n} images{left_out}{speed} → {store.path}")
            fact = {
                "path": str(store.path),
                "fingerprint": store.fingerprint,
                "images": len(store),
                "skipped": [store.ids[row] for row in sorted(store.skipped)],
                "layers": {name: list(store.shapes[name]) for name in store.layers},
                **{key: store.run[key] for key in ("seconds", "images_per_s", "shares")},
            }
            facts.append(fact)
        if n_left_out := sum(len(store.skipped) for store in stores):
            context.progress.note(f"warning: unreadable images left out: {n_left_out}")
        code = LEFT_OUT if self.strict and n_left_out else 0
        paths = tuple(store.path for store in stores)
        return Outcome(status, "\n".join(lines), paths, {"stores": facts}, exit_code=code)


@STEPS.register
class Embed(Extract):
    """Embed images, labelled or not, and write the vectors to a file."""

    name = "embed"
    makes = ("vectors",)
    examples = (  # type: ignore[assignment]
        "featpipe embed photos -o vectors.parquet",
        "featpipe embed csv:list.csv -o vectors.npz --model resnet18 --layer layer3",
    )

    dataset: str = altered(
        Extract.dataset,
        help="A folder of images, or a dataset as for featpipe extract.",
        registry=None,  # a folder, too
        positional=True,
    )
    model: str = altered(Extract.model, "resnet50")
    out: Path = option(
        help="File to write: .parquet, .csv, .npz or .h5; of several splits, one for each.",
        short="-o",
        check=table_file,
        affects_result=False,
    )
    force: bool = option(
        False, help="Replace a file that featpipe did not write, too.", affects_result=False
    )

    def check(self) -> None:
        """Refuse several layers: a file has one vector for each image."""
        super().check()
        if self.layer and len(self.layer) > 1:
            what = "A file of vectors holds one layer."
            raise UsageError(what, got=", ".join(self.layer), expected="--layer NAME, once")

    def requirements(self) -> Iterator[tuple[str, str]]:
        """Add the package that Parquet needs."""
        yield from super().requirements()
        if self.out.suffix == ".parquet":
            yield "pyarrow", "parquet"

    def output(self) -> Hashable:
        """Return the file."""
        return self.out

    status = Step.status  # the file is written each time, though nothing is embedded twice

    def run(self, context: Context) -> Outcome:
        """Extract the features into stores of the workspace, if necessary, and export them."""
        from featpipe.store import FeatureStore, export  # noqa: PLC0415 - brings NumPy and h5py

        values = {name: getattr(self, name) for name in options_of(Extract)}
        if self.dataset.partition(":")[0] not in DATASETS:
            values["dataset"] = f"folder:{self.dataset}"
        made, hashes = Extract(**values).run(context), FileHashes(context.workspace.hashes)
        targets, message = [], made.message
        for path in made.paths:
            store, target = FeatureStore(path, hashes), self.out
            if len(made.paths) > 1:
                split = store.manifest["dataset"]["split"].replace("/", "-")
                target = target.with_stem(f"{target.stem}-{split}")
            targets.append(target)
            written = export.export_store(store, target, force=self.force)
            message += f"\n{written} vectors → {target}"
        return Outcome("done", message, tuple(targets), made.facts, made.exit_code)
