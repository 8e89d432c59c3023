"""The house plan: imports go down only, and what is light stays light."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "featpipe"

# Module or package below featpipe → its layer; see docs/architecture.md.
LAYERS = {
    0: (
        "errors",
        "registry",
        "steps",
        "fingerprint",
        "files",
        "lazy",
        "workspace",
        "progress",
        "notebook",
        "provenance",
        "cluster",
        "urls",
    ),
    1: ("datasets", "store", "labelmap"),
    2: ("backbones", "probes", "evaluation", "statistics", "audit"),
    3: ("extraction", "finetuning", "reporting", "prediction", "bench", "embedder", "onnx_export"),
    4: ("api", "clean", "template"),
    5: ("cli", "__main__"),
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}

# Third-party packages that no module at or below a layer may import.
FORBIDDEN = {
    0: {"numpy", "h5py", "PIL", "torch", "torchvision", "sklearn", "pandas", "scipy", "click"},
    1: {"torch", "torchvision", "sklearn", "pandas", "scipy", "click"},
}
# Written for one function, imported when it is called, with a clear message where it is missing.
ALLOWED = {
    ("featpipe.store.export", "pandas"): "parquet and CSV are tables",
    ("featpipe.datasets.torchvision", "torchvision"): "its datasets are the datasets",
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imports(name: str, path: Path) -> Iterator[str]:
    """Yield what a module imports anywhere: at the top, when used, for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Lazy":
            yield ast.literal_eval(node.args[0])
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: write the whole name of {node.module}"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(name: str) -> int | None:
    """Return the layer of a module of featpipe; ``None`` for others and for featpipe itself."""
    parts = name.split(".")
    return LAYER_OF.get(parts[1]) if parts[0] == "featpipe" and len(parts) > 1 else None


def test_every_module_has_a_layer() -> None:
    missing = [name for name in MODULES if name != "featpipe" and layer_of(name) is None]
    assert not missing


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    own = layer_of(name)
    if own is None:
        return
    upwards = {
        target
        for target in imports(name, MODULES[name])
        if (layer_of(target) or 0) > own and target.split(".")[1] != name.split(".")[1]
    }
    assert not upwards, f"{name} is in layer {own}"


def test_no_module_imports_itself_in_a_circle() -> None:
    """Imports at the top of modules; those for type checking alone are no imports."""
    graph = {}
    for name, path in MODULES.items():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        found = [node for node in body if isinstance(node, ast.ImportFrom)]
        targets = {f"{node.module}.{alias.name}" for node in found for alias in node.names}
        targets |= {str(node.module) for node in found}
        # A package is imported before its modules, which may say so.
        graph[name] = {t for t in targets & set(MODULES) if not name.startswith(f"{t}.")}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", MODULES)
def test_lower_layers_need_no_heavy_packages(name: str) -> None:
    own = layer_of(name)
    forbidden = FORBIDDEN.get(-1 if own is None else own, set())
    found = {target.partition(".")[0] for target in imports(name, MODULES[name])} & forbidden
    assert not {package for package in found if (name, package) not in ALLOWED}


@pytest.mark.parametrize("name", [name for name in MODULES if name != "featpipe.__main__"])
def test_all_says_what_there_is(name: str) -> None:
    """``__all__`` is sorted, without doubles, and everything in it exists."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    if not any(
        isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        for node in tree.body
    ):
        return
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public), public
    public_names = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert public_names <= set(module.__all__)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("featpipe", "torch torchvision sklearn pandas scipy h5py numpy PIL click"),
        ("featpipe.steps", "torch torchvision sklearn pandas scipy h5py numpy PIL click"),
        ("featpipe.cli", "torch torchvision sklearn pandas scipy h5py numpy PIL"),
        ("featpipe.datasets", "torch torchvision sklearn pandas scipy h5py PIL"),
        ("featpipe.backbones", "torch torchvision sklearn pandas scipy h5py numpy PIL"),
        ("featpipe.store", "torch torchvision sklearn pandas scipy PIL"),
        ("featpipe.extraction", "torch torchvision sklearn pandas scipy PIL"),
        ("featpipe.evaluation.result", "torch torchvision sklearn pandas scipy h5py PIL"),
    ],
)
def test_importing_brings_only_what_is_needed(module: str, heavy: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {heavy.split()} if m in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == []
