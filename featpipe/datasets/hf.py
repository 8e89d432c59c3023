"""``hf:DATASET[:CONFIG]``: datasets of the Hugging Face hub, and local ones in its formats.

Its library finds the files and converts them into Arrow files, which are memory-mapped; images are
decoded here, as for all datasets. Code of a dataset is never run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.datasets import DATASETS, naming
from featpipe.datasets.dataset import Dataset, DatasetOptions
from featpipe.datasets.images import EncodedSource, FileSource
from featpipe.datasets.source import UNLABELLED, Identity, ImageSource, row_ids
from featpipe.errors import DataError, UnknownNameError, UsageError, did_you_mean, nearest_path
from featpipe.lazy import Lazy

datasets, hub = Lazy("datasets"), Lazy("huggingface_hub")
packaged = Lazy("datasets.packaged_modules.cache.cache")
compute = Lazy("pyarrow.compute")

_SAVED = ("dataset_dict.json", "state.json")  # written by save_to_disk
_FILES = {".parquet": "parquet", ".arrow": "arrow"}


@DATASETS.register
class HuggingFace(Dataset):
    """hf:DATASET[:CONFIG], of the Hugging Face hub; or a local folder or file (downloads)."""

    name = "hf"
    argument_name = "DATASET[:CONFIG]"
    requires = ("datasets", "hf")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the dataset, the usual ones first."""
        return naming.ordered_splits(self._tables)

    def open(self, split: str) -> ImageSource:
        """Map the images of one split."""
        table = self._tables[split]
        image, label = _columns(self.spec, table.features)
        classes, labels = self._labels(label, split)
        identity = Identity(self.spec, split, classes, row_ids(split, len(table)), labels)
        column, field = table.data.column(image), compute.struct_field
        paths = field(column, "path").drop_null().to_pylist()
        if 0 < len(paths) == len(table) == field(column, "bytes").null_count:  # files as they were
            every = [field(each.data.column(image), "path") for each in self._tables.values()]
            folders = {os.path.dirname(path) for each in every for path in each.to_pylist() if path}
            root = os.path.commonpath(folders)
            ids = [os.path.relpath(path, root) for path in paths]
            return FileSource(replace(identity, ids=ids), Path(root), self.options, self.spec)
        files = [Path(file["filename"]) for file in table.cache_files]
        return _Mapped(identity, column, files, self.options)

    def _labels(self, column: str | None, split: str) -> tuple[tuple[str, ...], Any]:
        """Return classes that hold in every split, and the labels of one."""
        table = self._tables[split]
        if column is None:
            return (), [UNLABELLED] * len(table)
        values = table.data.column(column)
        known = [each.data.column(column).unique() for each in self._tables.values()]
        if "string" in str(values.type):
            names = [name or None for each in known for name in each.to_pylist()]
            return naming.classes_by_name([name or None for name in values.to_pylist()], names)
        labels = values.cast("int64").fill_null(UNLABELLED).to_numpy()
        if named := getattr(table.features[column], "names", None):
            return tuple(named), labels
        every = np.concatenate([each.drop_null().to_numpy() for each in known])
        return naming.classes_by_number(every, self.spec), labels

    @cached_property
    def _tables(self) -> Mapping[str, Any]:
        """Splits of the dataset by name, memory-mapped."""
        datasets.disable_progress_bars()
        for logging in (datasets.logging, hub.logging):
            logging.set_verbosity_error()  # problems are errors here
        named, config = _parts(self.argument, self.options.data)
        path = self.options.resolve(named)
        try:
            if any((path / name).is_file() for name in _SAVED):
                found: Any = datasets.load_from_disk(str(path))
                whole = isinstance(found, datasets.Dataset)
                return {str(found.split or "all"): found} if whole else found
            how: dict[str, Any] = {"path": str(path)}
            if path.is_file():
                if path.suffix not in _FILES:
                    expected = f"a folder, or a file in {' or '.join(_FILES)}"
                    raise DataError("This file is not a dataset.", where=path, expected=expected)
                how = {"path": _FILES[path.suffix], "data_files": str(path)}
            elif not path.exists():
                reason = "nothing there, and nothing was fetched"
                asked = {"repo_id": named, "dataset_name": Path(named).name, "config_name": config}
                asked |= {"version": "auto", "hash": "auto"}
                for folder in self._caches():
                    try:
                        return packaged.Cache(cache_dir=str(folder), **asked).as_dataset()
                    except ValueError as error:  # it is not there, or in several configurations
                        reason = str(error) if "multiple" in str(error) else reason
                if not self.options.download or named.count("/") > 1 or path.is_absolute():
                    raise FileNotFoundError(reason)
                self.options.progress.note(f"{self.spec} is fetched from the Hugging Face hub")
                how = {"path": named}
            cache_dir = str(self.options.raw / ("hf-files" if path.exists() else "hf"))
            builder = datasets.load_dataset_builder(**how, name=config, cache_dir=cache_dir)
            builder.download_and_prepare()
            return builder.as_dataset()
        except DataError:
            raise
        except Exception as error:  # of the library, or of its dependencies
            raise self._translated(error, named, config) from error

    def _caches(self) -> list[Path]:
        """Return the folders that may hold datasets of the hub, the library's own one last."""
        return [*self.options.folders("hf"), Path(datasets.config.HF_DATASETS_CACHE)]

    def _translated(self, error: Exception, named: str, config: str | None) -> DataError:
        """Return the error for a wrong name or configuration, or what the library reports."""
        path, names = self.options.resolve(named), []
        if isinstance(error, ValueError):  # perhaps an unknown or missing configuration
            with suppress(Exception):
                names = datasets.get_dataset_config_names(str(path) if path.exists() else named)
        if names and config not in names:
            what = f"no configuration {config!r}" if config else "several configurations"
            hint = did_you_mean(config or "", names) or f"--dataset hf:{named}:{names[0]}"
            raise UnknownNameError(f"{named} has {what}.", known=names, next_step=hint) from error
        lines = [str(each).strip().partition("\n")[0] for each in (error, error.__cause__) if each]
        got = "; ".join(filter(None, lines))[:400] or type(error).__name__
        if path.exists():
            return DataError(f"The dataset {self.spec!r} cannot be opened.", where=path, got=got)
        folders = (each for folder in self._caches() for each in folder.glob("*/"))
        known = [each.name.replace("___", "/") for each in folders]
        near = None if named in known else did_you_mean(named, known)
        hint = "correct the name or --data DIR; or let featpipe extract fetch it from the hub"
        hint, places = near or nearest_path(path) or hint, [path, *self._caches()]
        expected = "a folder or a .parquet file, or a dataset of the hub"
        return self.not_found(places, expected, got=got, next_step=hint)

    @classmethod
    def path_in(cls, argument: str, data: Path | None = None) -> str:
        """Return the path of a local dataset; ``""``: it is the name of one of the hub."""
        path, _ = _parts(argument, data)
        found = DatasetOptions(data=data).resolve(path)
        return path if found.is_absolute() or found.exists() else ""


class _Mapped(EncodedSource):
    """Images whose files are the rows of a memory-mapped column of Arrow."""

    def __init__(
        self, identity: Identity, column: Any, files: list[Path], options: DatasetOptions
    ) -> None:
        with options.unchanged(files):
            content = options.digests(files)
        super().__init__(identity, content, identity.name)
        self._column, self._hashes = column, options.hashes
        absent = compute.struct_field(column, "bytes").is_null().to_numpy()
        self.unreadable = dict.fromkeys(np.flatnonzero(absent).tolist(), "The row holds no image.")

    def _where(self, row: int) -> str:
        return f"{self.name}, {self.ids[row]}"

    def _content(self, row: int) -> bytes:
        return self._column[row]["bytes"].as_py()


def _parts(argument: str, data: Path | None = None) -> tuple[str, str | None]:
    """Return the dataset and its configuration; a path may hold a colon, too."""
    path, colon, config = argument.rpartition(":")
    if not colon or DatasetOptions(data=data).resolve(argument).exists():
        return argument, None
    if not config:
        what = "The name of the configuration is missing."
        raise UsageError(what, expected=f"hf:{path} or hf:{path}:CONFIG", got=f"hf:{argument}")
    return path, config


def _columns(spec: str, features: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the columns of images and of labels; ``None`` where there are images only."""
    classes, value = datasets.ClassLabel, datasets.Value

    def is_image(feature: Any) -> bool:  # without metadata, an image is a mapping of these keys
        plain = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        return plain or isinstance(feature, datasets.Image)

    def is_label(feature: Any) -> bool:
        plain = isinstance(feature, value) and re.search("int|string", feature.dtype)
        return bool(plain) or isinstance(feature, classes)

    images = [name for name, feature in features.items() if is_image(feature)]
    labels = [name for name, feature in features.items() if isinstance(feature, classes)]
    if len(labels) != 1:
        labels = [name for name in ("label", "labels") if is_label(features.get(name))]
    if len(images) == 1 and (labels or len(features) == 1):
        return images[0], labels[0] if labels else None
    kinds = {n: f.dtype if isinstance(f, value) else type(f).__name__ for n, f in features.items()}
    wanted = "labels" if len(images) == 1 else "images"
    what = f"It is not clear which column of {spec} holds the {wanted}."
    expected = "one of type Image, and one of type ClassLabel or called label"
    hint = "rename_column(…, 'label') and save_to_disk(FOLDER) in Python, then hf:FOLDER"
    got = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    raise DataError(what, expected=expected, got=got, next_step=hint)
