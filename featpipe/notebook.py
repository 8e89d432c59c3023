"""What a notebook shows: objects as tables of HTML, and bars for work under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from featpipe.lazy import Lazy

html, tqdm = Lazy("html"), Lazy("tqdm.auto")


def html_table(title: str, rows: Sequence[Mapping[str, Any]], notes: Iterable[str] = ()) -> str:
    """Return rows as a table of HTML, every text escaped; one column per key of the first row.

    Examples
    --------
    >>> html_table("A & B", [{"n": 1}])
    '<b>A &amp; B</b><table><tr><th>n</th></tr><tr><td>1</td></tr></table>'
    """

    def line(tag: str, values: Iterable[Any]) -> str:
        return "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values)

    body = [line("th", rows[0]), *(line("td", row.values()) for row in rows)]
    table = "".join(f"<tr>{cells}</tr>" for cells in body)
    return f"<b>{html.escape(title)}</b><table>{table}</table>{line('p', notes)}"


def bars() -> Callable[[Any], None]:
    """Return a listener that shows a bar for each piece of work, and prints notes."""
    shown: dict[str, Any] = {}

    def listen(event: Any) -> None:
        name, unfinished = event.message, event.done < event.total
        if event.event == "note":
            tqdm.tqdm.write(name)
        elif unfinished and name not in shown:
            shown[name] = tqdm.tqdm(desc=name, total=event.total, initial=event.done)
        if bar := shown.get(name):
            bar.n, bar.postfix = event.done, " · ".join(map(str, event.facts.values()))
            bar.refresh()
            if not unfinished:
                shown.pop(name).close()

    return listen
