"""Manners of the command line: quick help, exit codes, one clear message, valid JSON."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from featpipe.cli.main import featpipe
from featpipe.steps import STEPS, options_of
from featpipe.steps.tracking import TRACKERS
from featpipe.store import FeatureStore
from tests import images
from tests.cli.conftest import in_process

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = featpipe.list_commands(click.Context(featpipe))
HEAVY = ("torch", "torchvision", "sklearn", "pandas", "h5py", "numpy", "scipy", "PIL", "jinja2")


# --- help


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """What is imported is what takes time: benchmarks measure seconds, this asks for the cause."""
    code = f"""
import sys
import featpipe
from featpipe.cli import main
for line in ["--help", "svm --help", "extract --help", "store --help", "store info --help",
             "report --help", "zeroshot --help", "labelmap --help", "models --help", "--version"]:
    try:
        main(line.split())
    except SystemExit as stop:
        assert stop.code == 0, line
    loaded = [name for name in {HEAVY} if name in sys.modules]
    assert not loaded, (line, loaded)
"""
    ended = in_process(code, tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_help_lists_every_command_and_examples(run: Any) -> None:
    ended = run("--help")
    assert ended.code == 0
    for name in COMMANDS:
        command = featpipe.get_command(click.Context(featpipe), name)
        assert command is not None
        assert f"  {name} " in ended.out
        assert command.get_short_help_str(200)[:20] in ended.out
    assert "featpipe demo" in ended.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_page_has_an_example(run: Any, name: str) -> None:
    ended = run(f"{name} --help")
    assert ended.code == 0
    assert "Usage: featpipe" in ended.out
    if not isinstance(featpipe.get_command(click.Context(featpipe), name), click.Group):
        assert f"featpipe {name}" in ended.out.partition("Example")[2]


def test_many_options_are_listed_in_groups(run: Any) -> None:
    shown = run("finetune --help").out
    headings = [line[:-1] for line in shown.splitlines() if re.fullmatch(r"\S.*:", line)]
    assert headings == [
        *("Network", "Images", "Training", "Choosing and testing", "Numbers and machine"),
        *("Options", "Every command", "Examples"),
    ]
    training = shown.partition("\nTraining:")[2].partition("\n\n")[0]
    assert "--lr X" in training
    assert "--dataset" not in training
    for spec in options_of(STEPS.get("finetune")).values():
        assert f"  {spec.flag} " in shown


@pytest.mark.parametrize("example", [example for step in STEPS for example in step.examples])
def test_every_example_parses(example: str) -> None:
    program, name, *arguments = shlex.split(example)
    assert program == "featpipe"
    command = featpipe.get_command(click.Context(featpipe), name)
    assert command is not None
    context = command.make_context(name, arguments)
    known = {key: value for key, value in context.params.items() if value not in (None, ())}
    for own in ("workspace", "as_json", "quiet", "jobs"):
        known.pop(own, None)
    STEPS.get(name).from_mapping(known)


def test_what_can_be_tracked_with_is_offered() -> None:
    command = featpipe.get_command(click.Context(featpipe), "run")
    assert command is not None
    (option,) = [param for param in command.params if param.name == "track"]
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(TRACKERS)


# --- exit codes and messages


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("extrct", "'extract'"),
        ("store lst", "'list'"),
        ("extract --model resnt50 --dataset digits", "'resnet50'"),
        ("extract --model resnet50 --dataset digts", "'digits'"),
        ("labelmap show imagenet_to_stl", "'imagenet_to_stl10'"),
        ("extract --modle resnet50 --dataset digits", "--model"),
        ("extract --model resnet50 --dataset digits --dtype float61", "'float16'"),
        ("extract --model resnet50 --dataset digits --split trian", "'train'"),
        ("extract --model resnet50 --dataset digits --weights IMAGENET1K_V3", "'IMAGENET1K_V"),
    ],
)
def test_wrong_names_end_with_2_and_the_nearest_right_one(run: Any, line: str, hint: str) -> None:
    ended = run(line)
    assert ended.code == 2
    assert ended.out == ""
    assert hint in ended.err


@pytest.mark.parametrize(
    "options",
    [
        "--image-size 0",
        "--image-size -5",
        "--image-size 3.5",
        "--image-size nan",
        "--image-size 1000000000",
        "--batch-size 0",
        "--batch-size many",
        "--limit 0",
        "--limit inf",
        "--limit 1e400",
        "--workers -1",
        "--split-seed -1",
        "--jobs 0",
        "--jobs some",
        "--jobs -7",
        "--split all,all",
        "--classes ant,ant",
        "--classes 'ant, bee,ant'",
        "--layer ''",
        "--layer ,",
        "--split ''",
        "--device ''",
        "--device gpu",
        "--device cuda:99",
        "--weights ''",
        "--classes ''",
        "--classes first:0",
        "--classes first:99",
        "--classes ant,bea",
        "--fit stretch",
        "--on-error ignore",
        "--data ''",
        "--data '~nobody-of-this-name/data'",
        "--workspace '~nobody-of-this-name/work'",
        "--frobnicate",
        "surplus",
    ],
)
def test_requests_that_cannot_be_right_end_with_2(run: Any, extract: str, options: str) -> None:
    ended = run(f"{extract} {options}")
    assert ended.code == 2, ended
    assert ended.err
    assert "Traceback" not in ended.err
    assert not list(Path.cwd().rglob("*.h5*"))


@pytest.mark.parametrize(
    "line",
    [
        "extract --model resnet18 --weights w.safetensors --dataset folder:photos",
        "{} --weights photos/ant/0.png",
        "{} --weights nowhere.pth",
        "{} --weights empty.pt",
        "{} --data nowhere",
        "{} --workspace empty.pt",
        "{} --workspace /proc/nowhere",
        "{} --dataset folder:nowhere",
        "{} --dataset folder:empty.pt",
        "{} --dataset folder:no_images",
        "{} --dataset csv:photos",
        "{} --dataset csv:empty.pt",
        "{} --dataset npz:empty.pt",
        "{} --dataset npz:nowhere.npz",
        "{} --dataset npz:fifo",
        "{} --dataset csv:fifo",
        "{} --weights fifo.pt",
        "{} --weights link.safetensors",
        "run fifo",
        "labelmap check fifo",
        "labelmap check link.safetensors",
        "predict fifo photos/ant/0.png",
        "{} --dataset 'folder:\udcff'",
        "store info nowhere.h5",
        "store info photos",
        "store info empty.pt",
        "store info w.safetensors",
        "store verify nowhere.h5 photos empty.pt w.safetensors",
        "store export empty.pt x.npz",
        "svm",
        "svm --train nowhere.h5 --test empty.pt",
        "zeroshot",
        "compare",
        "compare nothing",
        "report",
        "predict nothing photos/ant/0.png",
    ],
)
@pytest.mark.timeout(60)  # a FIFO would be waited for, a device be read for ever
def test_what_is_missing_or_damaged_ends_with_1(run: Any, extract: str, line: str) -> None:
    Path("empty.pt").touch()
    Path("no_images").mkdir()
    os.mkfifo("fifo")
    os.mkfifo("fifo.pt")
    Path("link.safetensors").symlink_to("/dev/zero")
    ended = run(line.format(extract))
    assert ended.code == (2 if line.startswith("run") else 1), ended
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err
    assert Path("w.safetensors").exists()
    for file in ("w.safetensors", "empty.pt"):
        assert f"rm '{file}'" not in ended.err  # never advise to delete what is no store


def test_a_message_says_what_where_and_next(run: Any) -> None:
    ended = run("store info nowhere.h5")
    assert ended.err.splitlines() == [
        "error: There is no such feature store.",
        "  where: nowhere.h5",
        "  next: featpipe store list",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("option", ["--workspace locked", "--weights locked/w.safetensors"])
def test_places_that_may_not_be_used(run: Any, extract: str, option: str) -> None:
    Path("locked").mkdir()
    Path("w.safetensors").rename("locked/w.safetensors")
    Path("locked").chmod(0o000)
    ended = run(f"{extract} {option}")
    Path("locked").chmod(0o700)
    assert ended.code == 1
    assert "Permission denied" in ended.err


def test_a_device_of_no_name_is_refused_although_all_is_done(run: Any, extract: str) -> None:
    assert run(extract).code == 0
    assert "up to date" in run(extract).out
    ended = run(f"{extract} --device nonsense")
    assert ended.code == 2
    assert "no device named 'nonsense'" in ended.err


def test_without_downloads_no_weights_are_fetched(
    run: Any, extract: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was begun")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("featpipe.backbones.architecture.fetch", refuse)
    for command in ("extract", "finetune --epochs 1"):
        ended = run(f"{command} --model resnet18 --dataset folder:photos --no-download")
        assert ended.code == 1
        assert "--weights FILE" in ended.err


def test_a_weights_file_that_is_a_raw_pickle_is_refused_in_one_message(
    extract: str, tmp_path: Path
) -> None:
    """In a process of its own: a warning is shown once."""
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"fc.weight": [1.0]}, protocol=4))
    code = (
        f"from featpipe.cli import main; main({shlex.split(extract)!r} + ['--weights', 'raw.pt'])"
    )
    ended = in_process(code, tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: The weights file")
    assert "arning" not in ended.stderr
    assert "weights_only" not in ended.stderr


def test_no_network_and_no_weights_names_three_ways_out(tmp_path: Path) -> None:
    images.photo_folder(tmp_path / "photos")
    code = (
        "import socket, time\n"
        "time.sleep = lambda seconds: None\n"  # between the retries
        "def refuse(*_, **__): raise OSError('Network is unreachable')\n"
        "socket.getaddrinfo = refuse\n"
        "from featpipe.cli import main\n"
        "main(['extract', '--model', 'resnet18', '--dataset', 'folder:photos'])"
    )
    ended = in_process(code, tmp_path, TORCH_HOME=str(tmp_path / "torch"))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) <= 5
    for way in ("network", "--weights FILE", "featpipe demo"):
        assert way in ended.stderr


def test_a_terminal_that_cannot_show_an_arrow_still_works(run: Any, extract: str) -> None:
    run(extract)
    code = f"from featpipe.cli import main; main({shlex.split(extract)!r})"
    ended = in_process(code, Path.cwd(), PYTHONIOENCODING="ascii")
    assert ended.returncode == 0, ended.stderr
    assert "\\u2192" in ended.stdout


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    ended = subprocess.run(
        f"{sys.executable} -m featpipe models | head -1",
        shell=True,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


# --- extract, as a person and a script see it


def test_extract_says_done_and_then_up_to_date(run: Any, extract: str) -> None:
    first, second = run(extract), run(extract)
    assert (first.code, second.code, second.err) == (0, 0, "")
    assert first.err.startswith(
        "cifar_resnet20: using the torch runtime (for images of 32 pixels, conv"
    )
    assert len(first.err.splitlines()) == 1
    assert first.out.startswith("done\nfolder:photos all: 12 images, ")
    assert "images/s" in first.out
    assert second.out.startswith("up to date\nfolder:photos all: 12 images → ")


def test_up_to_date_is_said_without_torch(run: Any, extract: str) -> None:
    run(extract)
    code = f"""
import sys
from featpipe.cli import main
try:
    main({shlex.split(extract)!r})
except SystemExit as stop:
    assert stop.code == 0
print([name for name in ("torch", "torchvision", "sklearn", "pandas", "scipy", "psutil", "rich")
       if name in sys.modules])
"""
    ended = in_process(code, Path.cwd())
    assert ended.stdout.splitlines()[0] == "up to date", ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"


def test_json_is_one_valid_object_per_line(run: Any, extract: str) -> None:
    first = run(f"{extract} --json")
    assert (first.code, first.err) == (0, "")
    kinds = [event["event"] for event in first.events]
    assert set(kinds) <= {"progress", "note", "outcome"}
    assert kinds[-1] == "outcome"
    progress = [event for event in first.events if event["event"] == "progress"][-1]
    assert (progress["done"], progress["total"]) == (12, 12)
    assert "images/s" in progress["rate"]
    for part in ("read", "compute", "write"):
        assert part in progress["shares"]
    (outcome,) = [event for event in first.events if event["event"] == "outcome"]
    assert outcome["status"] == "done"
    (store,) = outcome["stores"]
    assert FeatureStore(store["path"]).fingerprint == store["fingerprint"]
    assert store["layers"] == {"avgpool": [64]}
    (again,) = run(f"{extract} --json").events
    assert again["status"] == "up to date"


@pytest.mark.parametrize(
    ("options", "code"), [("--limit 0", 2), ("--jobs x", 2), ("--frob", 2), ("--data nowhere", 1)]
)
def test_json_tells_errors_too(run: Any, extract: str, options: str, code: int) -> None:
    ended = run(f"{extract} --json {options}")
    assert (ended.code, ended.err) == (code, "")
    (event,) = ended.events
    assert (event["event"], event["status"]) == ("outcome", "failed")
    assert event["message"]


def test_quiet_says_nothing_but_errors(run: Any, extract: str) -> None:
    assert run(f"{extract} -q") == (0, "", "")
    assert run("store list --quiet") == (0, "", "")
    ended = run(f"{extract} -q --data nowhere")
    assert ended.code == 1
    assert ended.err.startswith("error: The data folder does not exist.")
    (event,) = run(f"{extract} -q --json").events
    assert event["status"] == "up to date"


def test_skipped_images_are_a_warning_and_under_strict_an_exit_code(run: Any, extract: str) -> None:
    Path("photos/bee/1.png").write_bytes(b"no image")
    os.mkfifo("photos/bee/9.png")
    failed = run(extract)
    assert failed.code == 1
    assert "bee/9.png" in failed.err
    assert "--on-error skip" in failed.err
    skipped = run(f"{extract} --on-error skip")
    assert skipped.code == 0
    assert "(unreadable images left out: 2)" in skipped.out
    assert "skipped bee/1.png" in skipped.err
    assert "warning: unreadable images left out: 2" in skipped.err
    assert run(f"{extract} --on-error skip --strict").code == 3
    assert run(f"{extract} --on-error skip --strict --layer layer2").code == 3


def test_the_workspace_comes_from_option_then_variable(
    run: Any, extract: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATPIPE_WORKSPACE", "variable")
    assert "variable/data/features/" in run(extract).out
    assert "option/data/features/" in run(f"{extract} --workspace option").out
