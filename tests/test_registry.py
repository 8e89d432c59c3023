"""Names are known without importing what they name, and a wrong one is explained."""

from __future__ import annotations

import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe.backbones import MODELS
from featpipe.datasets import DATASETS
from featpipe.errors import UnknownNameError, UsageError, did_you_mean
from featpipe.registry import Registry, summary_of
from featpipe.steps import STEPS


class Square:
    """Four sides.

    More about it.
    """

    name = "square"


@pytest.fixture
def shapes() -> Registry[type]:
    registry: Registry[type] = Registry("shape", {"broken": "no_such_module"}, {"box": "square"})
    registry.register(Square)
    return registry


def test_nothing_is_imported_before_it_is_used(shapes: Registry[type]) -> None:
    assert shapes.names() == ["broken", "square"]
    assert "broken" in shapes
    with pytest.raises(ImportError):
        shapes.get("broken")


def test_aliases_mean_the_same(shapes: Registry[type]) -> None:
    assert shapes.get("box") is shapes.get("square") is Square
    assert shapes.canonical("box") == "square"
    assert shapes.aliases_of("square") == ["box"]
    assert "box" in shapes


def test_an_object_says_in_one_line_what_it_is() -> None:
    assert summary_of(Square) == "Four sides."
    assert summary_of(type("Named", (), {"summary": "Told."})) == "Told."


def test_an_unknown_name_names_kind_nearest_and_all(shapes: Registry[type]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        shapes.get("sqare")
    text = str(caught.value)
    assert "There is no shape named 'sqare'." in text
    assert "did you mean 'square'?" in text
    assert "expected: broken, square" in text


@given(st.text(string.printable, max_size=30))
def test_any_other_name_is_refused(name: str) -> None:
    if name not in MODELS:
        with pytest.raises(UnknownNameError):
            MODELS.canonical(name)


@pytest.mark.parametrize("registry", [STEPS, DATASETS, MODELS], ids=lambda r: r.kind)
def test_every_entry_is_there_under_its_name(registry: Registry[type]) -> None:
    for name, entry in zip(registry.names(), registry, strict=True):
        assert entry.name == name
        assert summary_of(entry)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on the path that holds another package with entry points."""
    (tmp_path / "polygons.py").write_text("class Hexagon:\n    name = 'hexagon'\n")
    info = tmp_path / "polygons-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: polygons\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[featpipe.shapes]\nhexagon = polygons:Hexagon\ngone = polygons:Heptagon\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_another_package_brings_its_own(packages: Path) -> None:
    shapes: Registry[type] = Registry("shape")
    assert shapes.names() == ["hexagon", "gone"]
    assert "polygons" not in sys.modules
    assert shapes.get("hexagon").name == "hexagon"
    assert shapes.package_of("hexagon") == "polygons"
    assert Registry("shape", {"box": "collections"}).package_of("box") is None
    with pytest.raises(UsageError, match="cannot be loaded") as caught:
        shapes.get("gone")
    assert "the package polygons" in caught.value.details["where"]


def test_one_that_cannot_be_loaded_leaves_the_others(packages: Path) -> None:
    shapes: Registry[type] = Registry("shape")
    shapes.register(Square)
    assert [shape.name for shape in shapes] == ["hexagon", "square"]
    lines = shapes.summaries()
    assert list(lines) == shapes.names() == ["hexagon", "gone", "square"]
    assert lines["square"] == "Four sides."
    assert lines["gone"].startswith("The shape 'gone' cannot be loaded: ")
    assert lines["gone"].endswith("(polygons:Heptagon of the package polygons)")


def test_metadata_of_an_unrelated_package_in_another_encoding_is_no_obstacle(packages: Path):
    info = packages / "unrelated-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes("[console_scripts]\nä = b:c\n".encode("latin-1"))
    first: Registry[type] = Registry("no such kind")
    assert first.names() == []


def test_another_package_cannot_take_a_name_over(packages: Path) -> None:
    shapes: Registry[type] = Registry("shape", {"hexagon": "collections"})
    with pytest.raises(UsageError, match="'polygons' registers a shape named 'hexagon'"):
        shapes.names()


def test_names_of_models_need_no_torch() -> None:
    code = "import sys; from featpipe.backbones import MODELS; MODELS.names(); MODELS.canonical"
    code += "('resnet20'); print('torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert ended.stdout.strip() == "False"


def test_nothing_near_gives_no_hint() -> None:
    assert did_you_mean("xyzzy", ["resnet50"]) is None
