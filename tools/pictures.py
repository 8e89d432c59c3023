"""Make the pictures of the README: the two commands in a terminal, and the report they write.

    python tools/pictures.py     # needs the extra test, and Chromium

The images are scikit-learn's handwritten digits, as files in a folder per class.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "images"
COMMANDS = (
    ["init", "numerals", "--model", "glyphnet"],
    ["run", "numerals.yaml"],
    ["predict", "svm", "numerals/3/0003.png"],
)
_COLUMNS, _LAST_TABLE = 92, "task "


def main() -> None:
    """Make both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=TARGET, help="folder of the pictures")
    target = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, (image, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
            path = root / "numerals" / str(label) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image.reshape(8, 8) * 15.9).astype("uint8")).save(path)
        terminal = Console(record=True, width=_COLUMNS, file=io.StringIO())
        for command in COMMANDS:
            terminal.print(Text(f"$ featpipe {' '.join(command)}", style="bold"))
            terminal.print(Text(run(command, root)))
        drawing = root / "terminal.svg"
        drawing.write_text(terminal.export_svg(title="featpipe"), encoding="utf-8")
        with sync_playwright() as driver:
            chromium = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for page, height, name in (
                (drawing, 557, "terminal.png"),
                (root / "reports" / "numerals.html", 860, "report.png"),
            ):
                photograph(browser, page, height, target / name)
            browser.close()


def run(command: list[str], folder: Path) -> str:
    """Run a featpipe command and return what it prints; of several tables the last one."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-m", "featpipe", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        check=True,
        capture_output=True,
        text=True,
    )
    lines = ended.stdout.splitlines()
    first = [number for number, line in enumerate(lines) if line.startswith(_LAST_TABLE)]
    return "\n".join([*lines[first[-1] if first else 0 :], ""])


def photograph(browser: Any, page: Path, height: int, target: Path) -> None:
    """Save what a browser window shows of a file."""
    tab = browser.new_page(viewport={"width": 1240, "height": height})
    tab.goto(page.as_uri())
    tab.wait_for_timeout(300)
    svg = tab.locator("svg.rich-terminal")
    (svg if svg.count() else tab).screenshot(path=target)
    with Image.open(target) as picture:
        small = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128)
    small.save(target, optimize=True)


if __name__ == "__main__":
    main()
