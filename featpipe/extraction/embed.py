"""The step ``embed``: images to a file of vectors, for use elsewhere."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path

from featpipe.datasets import DATASETS
from featpipe.errors import UsageError
from featpipe.extraction.step import Extract
from featpipe.fingerprint import FileHashes
from featpipe.steps import STEPS, Context, Outcome, Step, altered, grammar, option, options_of


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
        help="A folder of images, or a dataset as featpipe extract takes it.",
        registry=None,  # a folder, too
        positional=True,
    )
    model: str = altered(Extract.model, "resnet50")
    out: Path = option(
        help="File to write: .parquet, .csv, .npz or .h5; of several splits, one for each.",
        short="-o",
        check=grammar.table_file,
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
        """Add what a file of Parquet needs."""
        yield from super().requirements()
        if self.out.suffix == ".parquet":
            yield "pyarrow", "parquet"

    def output(self) -> Hashable:
        """Return the file."""
        return self.out

    status = Step.status  # the file is written each time, though nothing is embedded twice

    def run(self, context: Context) -> Outcome:
        """Extract the features into the workspace's store, unless they are there; export them."""
        from featpipe.store import FeatureStore, export  # noqa: PLC0415 - brings NumPy and h5py

        values = {name: getattr(self, name) for name in options_of(Extract)}
        if self.dataset.partition(":")[0] not in DATASETS:
            values["dataset"] = f"folder:{self.dataset}"
        made, hashes = Extract(**values).run(context), FileHashes(context.workspace.hashes)
        targets, message = [], made.message
        for path in made.paths:
            store, target = FeatureStore(path, hashes), self.out
            if len(made.paths) > 1:
                target = target.with_stem(f"{target.stem}-{store.manifest['dataset']['split']}")
            targets.append(target)
            written = export.export_store(store, target, force=self.force)
            message += f"\n{written} vectors → {target}"
        return Outcome("done", message, tuple(targets), made.facts, made.exit_code)
