"""Extraction on a Ray cluster: Ray Data hands the missing shards to long-running actors."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featpipe import cluster
from featpipe.cluster import NodeEnvironment, ray
from featpipe.datasets.source import ImageSource
from featpipe.errors import ClusterError, FeatpipeError, StoreInUseError
from featpipe.extraction.engine import Extraction
from featpipe.extraction.shards import Listen, Shard
from featpipe.extraction.step import Extract
from featpipe.lazy import Lazy
from featpipe.progress import SILENT, Event, Progress
from featpipe.provenance import package_version
from featpipe.steps import Context
from featpipe.store import FeatureStore, StoreContent
from featpipe.workspace import Workspace

data, torch = Lazy("ray.data"), Lazy("torch")

# How many processes may die at one shard; Ray by itself would retry forever.
_MOST_ATTEMPTS = 5
# A process of a killed driver may still hold the lock of a shard; a file server that loses
# contact with a node usually releases its locks after 90 seconds.
_IN_USE_SECONDS = 150.0


@dataclass
class ClusterExtraction(Extraction):
    """The sealed stores of some splits; the nodes of a cluster make what is missing."""

    order: Order = field(kw_only=True)
    address: str = field(kw_only=True)
    _joined: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False)

    def stores(self) -> list[FeatureStore]:
        """Return the sealed store of each split; the cluster is joined only if one is missing."""
        with self._joined:
            return super().stores()

    @cached_property
    def _described(self) -> dict[str, StoreContent]:
        """Content of the store of each split without its rows; a node opens the network for it."""
        self._joined.enter_context(cluster.joined(self.address, self.context.progress))
        resources, _ = self.order.actors()
        describe = ray.remote(Order.contents).options(**resources)
        with cluster.translate_ray_errors():
            answer = ray.get(describe.remote(self.order))
        if isinstance(answer, FeatpipeError):
            raise answer
        return {content.manifest["dataset"]["split"]: content for content in answer}

    def content(self, source: ImageSource) -> StoreContent:
        """Return the content of the store of a split."""
        rows: dict[str, Any] = {"ids": source.ids, "labels": source.labels, "folds": source.folds}
        return replace(self._described[source.split], **rows, groups=source.groups)

    def make_shards(self, shards: Iterable[Shard], listen: Listen) -> dict[str, Any]:
        """Hand each shard to the next idle actor."""
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        settings = data.DataContext.get_current()
        settings.enable_progress_bars = settings.print_on_execution_start = False
        settings.execution_no_progress_timeout_s = -1  # a shard may take hours
        of = {shard.label: shard for shard in shards}
        resources, n_actors = self.order.actors()
        n_actors = min(n_actors, len(of))
        each = " and ".join(f"{value:g} {name[4:-1].upper()}" for name, value in resources.items())
        self.context.progress.note(f"{n_actors} actors, {each} each; {len(of)} shards")
        if not self.order.step.num_gpus and any(node.get("GPU") for node in cluster.nodes()):
            self.context.progress.note("the cluster's GPUs are not used: --num-gpus 1 gives them")
        # One block per shard, because Ray schedules and retries blocks.
        items = [{"label": label, "shard": pickle.dumps(shard)} for label, shard in of.items()]
        rows = data.from_items(items, override_num_blocks=len(items))
        with cluster.translate_ray_errors(), cluster.listening(listen) as inbox:
            answers = rows.map(
                ShardWorker,
                fn_constructor_args=(self.order, inbox),
                compute=data.ActorPoolStrategy(size=n_actors, max_tasks_in_flight_per_actor=1),
                **resources,
            )
            for answer in answers.iter_rows():
                if answer["error"]:
                    raise pickle.loads(answer["error"])  # noqa: S301 - what our own actor pickled
                n = len(of[answer["label"]].rows)
                listen(answer["label"], Event("progress", done=n, total=n))
        who = {"name": "ray", "version": package_version("ray"), "actors": n_actors}
        return {"engine": {**who, **resources}}


@dataclass(frozen=True)
class Order:
    """What every actor receives: the step, its workspace and environment."""

    step: Extract
    workspace: Path
    images: Mapping[str, str]  # fingerprint of the images of each split
    environment: NodeEnvironment = field(default_factory=NodeEnvironment.current)
    identity: str = field(default_factory=lambda: secrets.token_hex(8))

    def open(self, progress: Progress) -> Extraction:
        """Open the images in the process of an actor; the network is opened on first use."""
        self.environment.enter()
        torch.set_num_threads(self.step.num_cpus)
        context = Context(Workspace(self.workspace), progress)
        opened = self.step.replace(engine="local").extraction(context, download=False)
        for source in opened.sources:
            if source.fingerprint != self.images[source.split]:
                what = f"A node has different images of {source.name} {source.split}."
                expected = f"fingerprint {self.images[source.split][:8]}"
                got = f"fingerprint {source.fingerprint[:8]} ({len(source)} images)"
                hint = "name a folder that all nodes share, or copy the dataset again"
                raise ClusterError(what, expected=expected, got=got, next_step=hint)
        return opened

    def contents(self) -> list[StoreContent] | FeatpipeError:
        """Return the content of the store of each split without its rows; an error as a value."""
        try:
            contents = self.open(SILENT).contents()
        except FeatpipeError as error:
            return _with_node(error)
        nothing: dict[str, Any] = {"ids": (), "groups": (), "folds": ()}
        return [replace(one, labels=np.zeros(0, np.int64), **nothing) for one in contents]

    def actors(self) -> tuple[dict[str, float], int]:
        """Return the resources of an actor, and the number of actors; default: all that fit."""
        step, nodes = self.step, cluster.nodes()
        resources = {"num_cpus": float(step.num_cpus)}
        if step.num_gpus:
            resources["num_gpus"] = step.num_gpus
        room = 0
        for node in nodes:
            cores, gpus = int(node.get("CPU", 0)) // step.num_cpus, int(node.get("GPU", 0))
            if step.num_gpus:  # actors may share a GPU, but none may use parts of two
                fit = int(1 / step.num_gpus + 1e-9) * gpus if step.num_gpus < 1 else 0
                cores = min(cores, fit or int(gpus // step.num_gpus))
            room += cores
        if not room and step.actors is None:
            got = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes[:8])
            expected = ", ".join(f"--{n.replace('_', '-')} {v:g}" for n, v in resources.items())
            what = "No node has the resources that an actor needs."
            hint = "ask for less; or --actors N, where the cluster adds nodes by itself"
            raise ClusterError(what, expected=expected, got=got, next_step=hint)
        return resources, step.actors or room


class ShardWorker:
    """What an actor runs: opens images and network once, then embeds one shard after another.

    Errors are returned, because Ray would retry what raises one.
    """

    def __init__(self, order: Order, inbox: Any) -> None:
        self._order, name = order, f"{cluster.node_name()}, process {os.getpid()}"
        self._listen = lambda label, event: cluster.report(inbox, label, event, name)
        self._extraction: Extraction | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Embed and seal a shard."""
        shard, error = pickle.loads(row["shard"]), b""  # noqa: S301 - what the driver pickled
        try:
            if self._extraction is None:
                self._extraction = self._order.open(SILENT)
            if not shard.is_done:  # when a node is lost, Ray repeats finished shards, too
                self._count_attempt(shard)
            until = time.monotonic() + _IN_USE_SECONDS
            while not shard.is_done:
                try:
                    self._extraction.make_shards([shard], self._listen)
                except StoreInUseError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(1)
        except FeatpipeError as raised:
            error = pickle.dumps(_with_node(raised))
        return {"label": row["label"], "error": error}

    def _count_attempt(self, shard: Shard) -> None:
        """Raise ClusterError if too many processes have died at a shard, out of memory perhaps."""
        attempts = shard.path.with_suffix(".attempts")
        attempts.parent.mkdir(parents=True, exist_ok=True)
        with attempts.open("a+", encoding="utf-8") as file:
            file.seek(0)
            before = file.read().count(self._order.identity)
            file.write(f"{self._order.identity}\n")
        if before >= _MOST_ATTEMPTS:
            what, got = "Processes repeatedly die at the same shard.", f"{before} that died"
            hint = "if memory is short: a smaller --batch-size, or more --num-cpus for each actor"
            raise ClusterError(what, where=shard.path, got=got, next_step=hint)


def _with_node(error: FeatpipeError) -> FeatpipeError:
    """Return the error with the node it occurred on."""
    places = filter(None, [error.details.get("where"), cluster.node_name()])
    error.details = {**error.details, "where": ", on ".join(places)}
    return error
