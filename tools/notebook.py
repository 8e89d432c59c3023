"""Run a notebook from top to bottom and write what its cells print beside them.

    python tools/notebook.py docs/notebooks/quickstart.ipynb

In a new folder, in one namespace, with this interpreter; the first cell that fails ends it.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(notebook: dict[str, Any], folder: Path) -> None:
    """Run the code cells in a folder, and put their outputs into the notebook."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(cells, start=1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                value = _execute("".join(cell["source"]), f"cell {number}", namespace)
            stream = {"output_type": "stream", "name": "stdout"}
            cell["outputs"] = [
                {**stream, "text": text.replace(str(folder), "…").splitlines(keepends=True)}
                for text in (printed.getvalue() + ("" if value is None else f"{value}\n"),)
                if text
            ]
            cell["execution_count"] = number


def _execute(source: str, name: str, namespace: dict[str, Any]) -> Any:
    """Run a cell and return the value of its last line, if that is an expression."""
    tree = ast.parse(source, name)
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        tree.body.pop()
    exec(compile(tree, name, "exec"), namespace)  # noqa: S102 - our own notebook
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace)  # noqa: S307


def main(path: Path) -> None:
    """Run the notebook at a path and write it again."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, Path(folder))
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    path.write_text(f"{text}{os.linesep}", encoding="utf-8", newline="")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
