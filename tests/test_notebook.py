"""What a notebook shows of stores, results and comparisons: short, and never anybody's HTML."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from featpipe.api import compare, evaluate
from tests.stores import content, sealed

NAME = "<script>alert('x')</script> & photos"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.opened, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert not attrs
        self.opened.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    train = sealed(folder / "a.h5", content(dataset=NAME))
    test = sealed(folder / "b.h5", content(30, split="test", dataset=NAME), seed=1)
    knn = evaluate("knn", train, test, workspace=folder, k=(1, 3), title=NAME)
    mean = evaluate("centroid", train, test, workspace=folder)
    return {"store": train, "result": knn, "comparison": compare([knn, mean])}


@pytest.mark.parametrize("kind", ["store", "result", "comparison"])
def test_it_is_a_table_in_which_every_text_is_escaped(shown, kind):
    found = Tags(shown[kind]._repr_html_())
    assert set(found.opened) <= {"b", "table", "tr", "th", "td", "p"}
    assert any(NAME in text for text in found.texts)


def test_the_repr_is_a_line(shown):
    result, comparison = shown["result"], shown["comparison"]
    assert all(len(repr(one)) < 250 for one in shown.values())
    assert result.name in repr(result)
    assert f"{100 * result.summary['accuracy']['value']:.2f}" in repr(result)
    assert repr(comparison) == "Comparison(2 methods, 0 published)"


def test_predictions_are_a_table(shown):
    result = shown["result"]
    table = result.table()
    assert len(table) == 30
    assert table["correct"].mean() == pytest.approx(result.summary["accuracy"]["value"])
    assert ((table["true"] == table["predicted"]) == table["correct"]).all()
    assert [name for name in table if name.startswith("score ")] == [
        f"score {name}" for name in result.dataset["classes"]
    ]
