"""Ray clusters: the options of steps that can use one, the connection, and the check of its nodes.

Ray schedules and repeats; nothing here does. Ray is an extra and imported when it is used.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from featpipe.errors import ClusterError, FeatpipeError, UsageError
from featpipe.lazy import Lazy, check_installed
from featpipe.progress import Progress
from featpipe.provenance import PACKAGES, package_version
from featpipe.steps import Step, option, options_of

ray, ray_util, ray_queue = Lazy("ray"), Lazy("ray.util"), Lazy("ray.util.queue")
strategies, socket = Lazy("ray.util.scheduling_strategies"), Lazy("socket")

_REACH_SECONDS = 5.0
_LOOK_SECONDS = 120.0  # in which every node has to answer; the first time it imports featpipe


def address(value: str) -> None:
    """Check the address of a cluster."""
    host, _, port = value.rpartition(":")
    if value != "auto" and not (host and port.isdecimal() and int(port) < 1 << 16):
        expected = "auto, or HOST:PORT of the cluster's head node"
        raise UsageError(f"{value!r} is not the address of a cluster.", expected=expected)


def gpus(value: float) -> None:
    """Check the GPUs of an actor: a whole number, or a fraction of one GPU."""
    if value > 1 and value != int(value):
        what = f"An actor cannot have {value:g} GPUs."
        raise UsageError(what, expected="a whole number, or a fraction below 1 such as 0.5")


class OnCluster(Step):
    """A step that can work on a cluster."""

    engine: str = option(
        "local",
        help="Where it runs: local, on this machine; ray, on the nodes of a Ray cluster.",
        choices=("local", "ray"),
        affects_result=False,
        group="Cluster",
    )
    address: str = option(
        "auto",
        help="The cluster's head node, HOST:PORT; auto: $RAY_ADDRESS, or the cluster that this"
        " machine is a node of.",
        check=address,
        affects_result=False,
        group="Cluster",
    )

    def check(self) -> None:
        """Refuse what only a cluster can do."""
        super().check()
        specs = options_of(type(self)).values()
        theirs = [spec for spec in specs if spec.group == "Cluster" and spec.name != "engine"]
        given = [spec.flag for spec in theirs if getattr(self, spec.name) != spec.default]
        if given and self.engine == "local":
            what = f"{given[0]} is for a cluster."
            raise UsageError(what, next_step="add --engine ray, or leave it out")

    def check_requirements(self) -> None:
        """Refuse a cluster without Ray, too."""
        super().check_requirements()
        if self.engine == "ray":
            check_ray()


def check_ray() -> None:
    """Raise ``MissingExtraError`` unless Ray is installed."""
    check_installed("ray", "ray")


@dataclass(frozen=True)
class NodeEnvironment:
    """What has to be the same on every node as where the command was run."""

    folder: str  # the current one, which relative paths start from
    packages: dict[str, str]  # name and version

    @classmethod
    def current(cls) -> NodeEnvironment:
        """Return that of this process."""
        names = (*PACKAGES, "pillow", "timm", "transformers")
        return cls(os.getcwd(), {name: package_version(name) for name in names})

    def enter(self) -> None:
        """Check this process, on any node, and change to the folder."""
        if wrong := self.difference():
            raise ClusterError(**wrong, where=node_name())
        os.chdir(self.folder)

    def difference(self) -> dict[str, str]:
        """Return what differs here, as the parts of an error; empty if nothing does."""
        hint = "use the same environment on all nodes, such as one container image: docs/scale.md"
        have, wanted = NodeEnvironment.current().packages, self.packages
        if other := [name for name in wanted if have[name] != wanted[name]]:
            what = "A node of the cluster has other package versions."
            expected, got = (
                ", ".join(f"{name} {of[name]}" for name in other) for of in (wanted, have)
            )
        elif not os.path.isdir(self.folder):
            what = "A node of the cluster does not have the folder that the command was run in."
            expected = f"{self.folder}, on a file system that all nodes share"
            got = "no such folder"
        else:
            return {}
        return {"what": what, "expected": expected, "got": got, "next_step": hint}


def node_name() -> str:
    """Return the name of this node in messages."""
    return f"node {ray_util.get_node_ip_address()} ({socket.gethostname()})"


@contextmanager
def joined(where: str, progress: Progress) -> Iterator[None]:
    """Join the cluster at an address, unless this process is in one already.

    A ClusterError says that there is none, or how its nodes differ.
    """
    check_ray()
    if ray.is_initialized():
        yield
        return
    _reach(where)
    try:
        ray.init(where, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError …, by version
        what, got = "The cluster cannot be joined.", str(error).strip().partition("\n")[0][:400]
        hint = "start one, ray start --head, or name its address: --address HOST:PORT"
        raise ClusterError(what, where=where, got=got, next_step=hint) from error
    try:
        _check_nodes()
        found = nodes()
        cores, gpus = (sum(node.get(kind, 0) for node in found) for kind in ("CPU", "GPU"))
        parts = [(len(found), "node"), (cores, "core"), *[(gpus, "GPU")] * bool(gpus)]
        size = ", ".join(f"{number:g} {what}{'s' * (number != 1)}" for number, what in parts)
        progress.note(f"Ray cluster: {size}")
        with _ray_messages_to(progress):
            yield
    finally:
        ray.shutdown()  # ends what still runs for this process


@contextmanager
def _ray_messages_to(progress: Progress) -> Iterator[None]:
    """Report Ray's messages about nodes and actors that died; Ray itself would print them."""

    def report(data: Mapping[str, Any], **_: Any) -> None:
        first = "\n".join(data.get("lines", ())).strip().partition("\n")[0]
        progress.note(f"Ray: {first[:300]}")

    worker: Any = importlib.import_module("ray._private.worker")  # there is no public way
    printing = getattr(worker, "print_to_stdstream", None)
    worker.print_to_stdstream = report
    try:
        yield
    finally:
        worker.print_to_stdstream = printing


def _reach(where: str) -> None:
    """Refuse an address where nothing is listening; Ray itself would wait for a minute."""
    if where == "auto":
        return
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except OSError as error:
        hint = "start its head node there, ray start --head --port=PORT, or correct --address"
        what, got = "There is no cluster at this address.", error.strerror or str(error)
        raise ClusterError(what, where=where, got=got, next_step=hint) from error


def nodes() -> list[dict[str, float]]:
    """Return the resources of each node, ``CPU`` and ``GPU`` for example."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def on_node(identity: str) -> Any:
    """Return the scheduling strategy that runs something on one node."""
    return strategies.NodeAffinitySchedulingStrategy(identity, soft=False)


def _check_nodes() -> None:
    """Compare every node with this process."""
    look = ray.remote(NodeEnvironment.difference)
    places = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    here = NodeEnvironment.current()
    asked = {
        look.options(num_cpus=0, scheduling_strategy=on_node(identity)).remote(here): name
        for identity, name in places.items()
    }
    for answer, name in asked.items():
        try:
            wrong = ray.get(answer, timeout=_LOOK_SECONDS)
        except ray.exceptions.NodeDiedError:
            continue  # other nodes do its work
        except Exception as error:
            what, hint = "A node of the cluster cannot run featpipe.", "install it there as well"
            where, got = f"node {name}", _last_line(error)
            raise ClusterError(what, where=where, got=got, next_step=hint) from error
        if wrong:
            raise ClusterError(**wrong, where=f"node {name}")


@contextmanager
def listening(take: Callable[..., None]) -> Iterator[Any]:
    """Yield a queue on this node that other nodes report to; a thread passes reports on.

    ``take`` is called with the values of each :func:`report`.
    """
    here = on_node(ray.get_runtime_context().get_node_id())
    inbox = ray_queue.Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def pass_on() -> None:
        with suppress(ray.exceptions.RayError):  # the cluster is gone; the tasks say so
            while values := inbox.get():
                take(*values)

    listener = threading.Thread(target=pass_on, daemon=True)
    listener.start()
    try:
        yield inbox
    finally:
        with suppress(ray.exceptions.RayError):
            inbox.put(())
        listener.join()
        inbox.shutdown(force=True)


def report(inbox: Any, *values: Any) -> None:
    """Put values into the queue of :func:`listening`; nothing depends on their arrival."""
    inbox.actor.put_nowait.remote(values)


@contextmanager
def translate_ray_errors() -> Iterator[None]:
    """Turn an error of Ray into a ClusterError, or into the FeatpipeError that caused it."""
    try:
        yield
    except ray.exceptions.RayError as error:
        if isinstance(cause := getattr(error, "cause", None), FeatpipeError):
            raise cause from error
        hint = "see Ray's logs; the same command continues with what is missing"
        what, got = "The work on the cluster failed.", _last_line(error)
        raise ClusterError(what, got=got, next_step=hint) from error


def _last_line(error: Exception) -> str:
    """Return the type of an error and the last line of Ray's long text, which is the cause."""
    last = str(error).strip().rpartition("\n")[2]
    return f"{type(error).__name__}: {last.strip()}"[:400]
