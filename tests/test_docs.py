"""The documents keep up with the project: links, commands, extras and README's Python."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import click
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torchvision.models import get_model, get_model_weights

from featpipe import cli
from featpipe.backbones import MODELS, architecture_of
from featpipe.datasets.binary import Stl10
from featpipe.store import scan_stores
from tests.backbones.tiny import save_tiny
from tests.datasets.conftest import sums_of, write_stl10

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "data/README.md", "reports/README.md", "tools/**/*.md")
    for page in ROOT.glob(pattern)
)
NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it names what is gone, too
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = {"", "sh", "bash", "shell", "console"}
LINK = re.compile(r"\]\(([^()\s]+)(?: \"[^\"]*\")?\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
PLACEHOLDERS = {"…", "..."}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def shell_lines(page: Path) -> Iterator[str]:
    """Yield what a page tells the reader to type: lines of fenced blocks, and inline code."""
    text = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(text):
        if language.strip() in SHELL:
            for line in block.replace("\\\n", " ").splitlines():
                yield line.removeprefix("$ ").strip()
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page)))


def commands(program: str) -> list[tuple[str, str]]:
    """Return (page, line) of all commands that start with a program's name."""
    return [
        (named(page), line)
        for page in NOW
        for line in shell_lines(page)
        if line.split()[:1] == [program]
    ]


def words(line: str) -> list[str]:
    """Split a line like a shell, up to its comment or the next command."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[str] = []
    for word in lexer:
        if set(word) <= set("();<>|&"):
            break
        found.append(word)
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = unique = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while unique in found:
            number += 1
            unique = f"{anchor}-{number}"
        found.add(unique)
    return found


def root_command() -> click.Group:
    """Return the group that the script ``featpipe`` runs, wherever it is defined."""
    nearby = [cli.main, *vars(cli).values(), *vars(sys.modules[cli.main.__module__]).values()]
    groups = [value for value in nearby if isinstance(value, click.Group)]
    return max(groups, key=lambda group: len(group.list_commands(click.Context(group))))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    links = [inline or reference for inline, reference in LINK.findall(prose(page))]
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue  # another place of the web
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize(("page", "line"), commands("featpipe"))
def test_commands_and_options_exist(page: str, line: str) -> None:
    command: click.Command | None = root_command()
    arguments = [word for word in words(line)[1:] if word not in PLACEHOLDERS]
    name, context = "featpipe", None
    while True:
        assert command is not None, f"{page}: there is no command {name!r}"
        context = click.Context(command, context, name, **command.context_settings)
        try:
            values, arguments, _ = command.make_parser(context).parse_args(arguments)
        except click.UsageError as error:
            pytest.fail(f"{page}: {error.format_message()}")
        for parameter in command.params:
            value = values.get(parameter.name)
            if isinstance(parameter.type, click.Choice) and isinstance(value, str):
                parameter.type.convert(value, parameter, context)
        if not isinstance(command, click.Group) or not arguments:
            break
        name = arguments.pop(0)
        command = command.get_command(context, name)
    assert not arguments, f"{page}: {name} takes no {arguments}"


def test_scripts_and_make_targets_exist() -> None:
    for page, line in commands("python"):
        script = words(line)[1]
        assert not script.endswith(".py") or (ROOT / script).is_file(), (page, line)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page, line in commands("make"):
        assert {word for word in words(line)[1:] if "=" not in word} <= set(targets), (page, line)


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in NOW:
        for extras in re.findall(r"(?:featpipe|\.)\[([a-z][a-z,-]*)\]", page.read_text("utf-8")):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), page


@pytest.mark.timeout(600)
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    blocks = FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    code = "\n".join(block for language, block in blocks if language == "python")
    assert code
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def photos(folder: Path) -> None:
    """Write handwritten digits as a folder of images per class."""
    digits = load_digits(n_class=3)
    for number, (image, label) in enumerate(zip(digits.images[:150], digits.target, strict=False)):
        path = folder / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).save(path)


@pytest.mark.timeout(600)
def test_the_commands_on_your_own_photos_run(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Install")[0]
    lines = [line for language, block in FENCE.findall(text) for line in block.splitlines()]
    typed = [words(line)[1:] for line in lines if line.startswith("featpipe ")]
    assert [arguments[0] for arguments in typed[:2]] == ["init", "run"]
    for arguments in typed:
        # The default backbone would be downloaded; the embedded one needs no network.
        offline = ["--model", "glyphnet"] if arguments[0] in ("init", "embed") else []
        ended = subprocess.run(
            [sys.executable, "-m", "featpipe", *arguments, *offline],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, (arguments, ended.stderr)
    assert (tmp_path / "reports" / "photos.html").is_file()
    assert (tmp_path / "vectors.parquet").is_file()
    assert "Garden birds" in (tmp_path / "reports" / "folder-photos.html").read_text("utf-8")


def with_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Work in a folder that holds files of STL-10's form, with ``n`` images a split."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEATPIPE_WORKSPACE", raising=False)
    folder = tmp_path / "data" / "raw" / "stl10_binary"
    write_stl10(folder, n)
    monkeypatch.setattr(Stl10, "md5", sums_of(Stl10, folder))


def untrained(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let random weights be the published ones of a network of torchvision, as downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    weights = tmp_path / "hub" / "checkpoints" / f"{name}.pth"  # no digest in its name
    weights.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(get_model(name).state_dict(), weights)
    url = f"https://example.org/{weights.name}"
    monkeypatch.setattr(get_model_weights(name).DEFAULT.value, "url", url)
    published = architecture_of(name if name in MODELS else f"torchvision:{name}").published
    at = replace(published["DEFAULT"], location=url)  # of those that were looked up before
    monkeypatch.setitem(published, "DEFAULT", at)


def run_block(heading: str, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Run the first commands under a heading of the README; return what follows ``featpipe``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"## {heading}")[2]
    block = next(block for language, block in FENCE.findall(text) if language == "sh")
    typed = [words(line)[1:] for line in block.splitlines()]
    for arguments in typed:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert not ended.value.code, (arguments, capsys.readouterr().err)
    return typed


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_commands_of_the_benchmark_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They run on files of STL-10's form and on a ResNet-50 that was not trained, as downloaded."""
    with_stl10(tmp_path, monkeypatch, 100)
    untrained("resnet50", tmp_path, monkeypatch)
    typed = run_block("A benchmark", capsys)
    assert [arguments[0] for arguments in typed[:2]] == ["extract", "svm"]
    page = (tmp_path / "reports" / "stl10.html").read_text(encoding="utf-8")
    for method in ("SVM", "Logistic", "RandomForest", "restricted", "new head"):
        assert method in page


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_commands_on_any_backbone_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They run on random weights, as downloaded; that of transformers is a smaller DINOv2."""
    timm = pytest.importorskip("timm")
    hub = tmp_path / "huggingface"
    with_stl10(tmp_path, monkeypatch, 10)
    untrained("convnext_tiny", tmp_path, monkeypatch)
    vit = timm.create_model("vit_base_patch16_224.dino")
    (of_timm := hub / "timm" / "vit_base_patch16_224.dino").mkdir(parents=True)
    save_file(vit.state_dict(), of_timm / "model.safetensors")
    save_tiny("dinov2", hub / "facebook" / "dinov2-base")
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda name, file, **_: str(hub / name / file)
    )
    typed = run_block("Any backbone", capsys)
    made = [store.manifest["backbone"]["model"] for store in scan_stores(tmp_path)[0]]
    assert sorted(made[::2]) == sorted(made[1::2]), "a training and a test split of each"
    assert {*made} == {arguments[arguments.index("--model") + 1] for arguments in typed}


@pytest.mark.timeout(600)
def test_the_notebook_runs_and_says_what_it_shows(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "docs/notebooks/quickstart.ipynb").read_text(encoding="utf-8"))
    shown = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    tool("notebook").run(notebook, tmp_path)
    again = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert again == shown


def test_the_api_reference_is_what_the_docstrings_say() -> None:
    written = tool("api_reference")
    text = written.reference(written.public_module())
    assert written.TARGET.read_text(encoding="utf-8") == text, "python tools/api_reference.py"
    for name in written.public_module().__all__:
        assert f"\n### {name}\n" in text


def tool(name: str) -> ModuleType:
    """Import a script of the folder tools."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
