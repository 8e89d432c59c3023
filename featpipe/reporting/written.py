"""The files of a report: which of them featpipe wrote, and whether they are still what it wrote.

Beside the tables is ``SHA256SUMS`` with the digests of the page and of each table, in the format of
``sha256sum --check``. What it does not name is not featpipe's and is not replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from featpipe.errors import UsageError
from featpipe.fingerprint import of_bytes, of_file
from featpipe.workspace import atomic_write, explain_os_errors, refuse_foreign

PAGE_MARK = b'<meta name="generator" content="featpipe report">'
INDEX_MARK = b'<meta name="generator" content="featpipe index">'
SUMS = "SHA256SUMS"
_SUMS_MARK = "# written by featpipe report"


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
    folder = tables_folder(page)
    known = _digests(page)
    refuse_foreign(page, PAGE_MARK, force=force)
    refuse_foreign(folder / SUMS, _SUMS_MARK.encode(), force=force)
    # Featpipe 0.1 wrote no sums: the tables beside a page of it are its own.
    trusted = force or (page.exists() and not (folder / SUMS).exists())
    for name in tables:
        if (folder / name).exists() and name not in known and not trusted:
            raise UsageError(
                "A table that featpipe did not write would be replaced.",
                where=folder / name,
                next_step="name another report, or add --force to replace it",
            )
    contents = {name: table.encode() for name, table in tables.items()}
    content = text.encode()
    lines = [f"{of_bytes(table)}  {name}" for name, table in sorted(contents.items())]
    sums = "\n".join([_SUMS_MARK, *lines, f"{of_bytes(content)}  ../{page.name}", ""])
    # The sums come before what they name, so that it is featpipe's after a kill at any moment.
    files = {folder / SUMS: sums.encode()}
    files |= {folder / name: table for name, table in contents.items()}
    for name in known.keys() - tables.keys():
        (folder / name).unlink(missing_ok=True)
    for path, what in {**files, page: content}.items():
        with atomic_write(path) as temporary:
            temporary.write_bytes(what)


def changed_files(page: Path) -> list[Path]:
    """Return the page and its tables as far as they are missing or not what was written."""
    own = f"../{page.name}"
    named = {
        page if name == own else tables_folder(page) / name: digest
        for name, digest in _digests(page, own).items()
    }
    return [path for path, digest in named.items() if not path.is_file() or of_file(path) != digest]


def _digests(page: Path, *others: str) -> dict[str, str]:
    """Return the digests of a page's tables by name, and of ``others``; nothing else is named."""
    sums = tables_folder(page) / SUMS
    if not sums.is_file():
        return {}
    with explain_os_errors(sums):
        lines = sums.read_text("utf-8", errors="replace").splitlines()
    if lines[:1] != [_SUMS_MARK]:
        return {}
    found = {name: digest for digest, _, name in (line.partition("  ") for line in lines[1:])}
    return {n: digest for n, digest in found.items() if n in others or (n and Path(n).name == n)}
