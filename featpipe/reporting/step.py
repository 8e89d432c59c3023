"""The step ``report``: the options of a page, and the files that it writes.

Beside the tables is ``SHA256SUMS`` with the digests of the page and of each table, in the format of
``sha256sum --check``. What it does not name is not featpipe's and is not replaced.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Self

from featpipe.errors import UsageError
from featpipe.fingerprint import of_bytes, of_file
from featpipe.statistics.step import ResultsStep
from featpipe.steps import STEPS, Context, Outcome, option
from featpipe.workspace import Workspace, atomic_write, explain_os_errors, refuse_foreign

PAGE_MARK = b'<meta name="generator" content="featpipe report">'
SUMS = "SHA256SUMS"
_SUMS_MARK = "# written by featpipe report"


@STEPS.register
class Report(ResultsStep):
    """Write results as one self-contained HTML page, with its tables as CSV."""

    name = "report"
    examples = (
        "featpipe report --all",
        "featpipe report data/results/stl10-*.json --out reports/stl10",
    )
    makes = ("page",)
    waits_for = ("pictures", "audit")

    all: bool = option(
        False, help="All results in the workspace (the default).", selects_input=True
    )
    out: Path | None = option(
        None,
        help="Name of the report without ending; default: reports/DATASET.",
        affects_result=False,
    )
    title: str | None = option(None, help="Title of the page.", affects_result=False)
    dataset_name: str | None = option(
        None, help="What the page calls the dataset.", affects_result=False
    )
    gallery: int = option(24, help="Maximum number of images in each gallery.", minimum=0)
    data: Path | None = option(None, help="Folder to look for the images in.", affects_result=False)
    seed: int = option(0, help="Seed of the map of the features.", seed=True)

    def check(self) -> None:
        """Refuse ``--all`` together with names, and an ``--out`` that is not a file name."""
        if self.out is not None and self.out.name in ("", "..", ".html"):
            what, expected = "--out does not name a report.", "a name, such as reports/mine"
            raise UsageError(what, expected=expected, got=self.out)
        if self.all and self.results:
            raise UsageError("Name results or use --all, not both.", got=", ".join(self.results))

    def has_inputs(self) -> bool:
        """Whether results are named."""
        return self.all or super().has_inputs()

    def placed(self, recipe: str, task: str, workspace: Workspace) -> Self:
        """Name the page after the recipe, and after the task where there are several pages."""
        if self.out is not None:
            return self
        return self.replace(out=workspace.reports / (f"{recipe}-{task}" if task else recipe))

    def bind(self, inputs: Sequence[Sequence[Path]]) -> Self:
        """Add the results that other steps have made to those that are named."""
        return self if self.all else super().bind(inputs)

    def output(self) -> Hashable:
        """Return the HTML file, where its name is chosen."""
        return self.out and html_path(self.out)

    def run(self, context: Context) -> Outcome:
        """Write the page, its tables and the list of all pages."""
        from featpipe.reporting.page import write_report  # noqa: PLC0415 - pandas, scikit-learn

        return write_report(self, context)


def html_path(out: Path) -> Path:
    """Return the file of a report called ``NAME`` or ``NAME.html``."""
    return out.with_name(f"{out.name.removesuffix('.html')}.html")


def tables_folder(page: Path) -> Path:
    """Return the folder of a page's tables."""
    return page.with_name(f"{page.stem}-tables")


def replace_files(page: Path, text: str, tables: Mapping[str, str], *, force: bool) -> None:
    """Write a page and its tables, by file name; tables that an earlier page had are removed.

    Raises
    ------
    UsageError
        Before anything is written, if a file that featpipe did not write would be replaced, unless
        ``force``.
    """
    folder, known = tables_folder(page), _digests(page)
    sums = folder / SUMS
    refuse_foreign(page, PAGE_MARK, force=force)
    refuse_foreign(sums, _SUMS_MARK.encode(), force=force)
    # Featpipe 0.1 wrote no sums: the tables beside a page of it are its own.
    trusted = force or (page.exists() and not sums.exists())
    contents = {folder / name: tables[name].encode() for name in sorted(tables)}
    for path in contents:
        if path.exists() and path not in known and not trusted:
            raise UsageError(
                "A table that featpipe did not write would be replaced.",
                where=path,
                next_step="name another report, or add --force to replace it",
            )
    contents[page] = text.encode()
    lines = [
        f"{of_bytes(content)}  {'../' * (path == page)}{path.name}"
        for path, content in contents.items()
    ]
    stated = "\n".join([_SUMS_MARK, *lines, ""]).encode()
    for path in known.keys() - contents.keys():
        path.unlink(missing_ok=True)
    # The sums come before what they name, so that it is featpipe's after a kill at any moment.
    for path, content in {sums: stated, **contents}.items():
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)


def pages_with_digests(folder: Path) -> list[Path]:
    """Return the pages of reports in a folder; an index and pages of others have no digests."""
    return [page for page in sorted(folder.glob("*.html")) if _digests(page)]


def changed_files(page: Path) -> list[Path]:
    """Return those of the page and its tables that are missing or differ from what was written."""
    stated = _digests(page).items()
    return [path for path, digest in stated if not path.is_file() or of_file(path) != digest]


def _digests(page: Path) -> dict[Path, str]:
    """Return the digests that are stated for a page and its tables; nothing else is named."""
    folder, own = tables_folder(page), f"../{page.name}"
    sums = folder / SUMS
    if not sums.is_file():
        return {}
    with explain_os_errors(sums):
        mark, *lines = sums.read_text("utf-8", errors="replace").splitlines() or [""]
    if mark != _SUMS_MARK:
        return {}
    found = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    return {
        page if name == own else folder / name: digest
        for name, digest in found.items()
        if name == own or (name and Path(name).name == name)
    }
