"""The file of a label map: however it was saved it is read, and no damaged one is ever used."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe import labelmap
from featpipe.errors import LabelMapError, UnknownNameError
from featpipe.labelmap import LabelMap

FOLDER = Path(labelmap.__file__).parent
STL10 = LabelMap.load("imagenet_to_stl10").targets

# A map of three source classes, small enough to damage in every place.
SMALL = """\
# source: nothing that featpipe knows, so the ids are given
# targets: cat, "dog, or wolf", deer
source_id,source_name,target,why
s1,tabby,cat,"striped, domestic"
s2,wolf,"dog, or wolf",
s3,table,other,furniture
"""
SMALL_CLASSES = ("cat", "dog, or wolf", "deer")


def refusal(
    path: Path,
    text: str | bytes,
    classes: tuple[str, ...] | None = SMALL_CLASSES,
    ids: tuple[str, ...] | None = ("s1", "s2", "s3"),
) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabelMapError) as caught:
        LabelMap.load(path, classes, ids)
    assert str(path) in caught.value.details["where"]
    return str(caught.value)


class TestUsersOwnMap:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "own map.csv"

    @pytest.mark.parametrize(
        "text",
        [
            SMALL,
            "\ufeff" + SMALL,
            SMALL.replace("\n", "\r\n"),
            SMALL.replace("\n", "\n\n"),
            SMALL.replace("deer\n", "deer,,\n").replace("knows,", "knows,,"),  # spreadsheet padding
            SMALL.replace("s1,", " s1 , "),
            SMALL.replace('"striped, domestic"', '"striped,\ndomestic"'),
        ],
        ids=["plain", "bom", "crlf", "blank lines", "padded", "spaces", "line end in a cell"],
    )
    def test_is_read_however_it_was_saved(self, path: Path, text: str) -> None:
        path.write_text(text, "utf-8", newline="")
        label_map = LabelMap.load(path, SMALL_CLASSES, ["s3", "s1", "s2"])
        assert label_map.columns().tolist() == [3, 0, 1]
        assert label_map.without_source == ("deer",)
        assert label_map.name == str(path)

    def test_needs_no_notes_and_two_columns_only(self, path: Path) -> None:
        path.write_text("target,source_id\ncat,s1\nother,s2\n")
        assert LabelMap.load(path).sources == {"cat": ("",), "other": ("",)}
        assert LabelMap.load(path, ["cat"], ["s1", "s2"]).columns().tolist() == [0, 1]

    def test_sources_are_listed_by_target(self, path: Path) -> None:
        path.write_text(SMALL)
        assert LabelMap.load(path, SMALL_CLASSES, ("s1", "s2", "s3")).sources == {
            "cat": ("tabby",),
            "dog, or wolf": ("wolf",),
            "deer": (),
            "other": ("table",),
        }

    def test_disputed_rows_name_a_group_and_another_target(self, path: Path) -> None:
        path.write_text(
            "# targets: cat, deer\n# note: read this, too\n"
            "source_id,target,disputed\ns1,cat,\ns2,other,big: cats: cat\ns3,other, elk :deer\n"
        )
        label_map = LabelMap.load(path)
        assert label_map.note == "read this, too"
        groups = {g: [r.source_id for r in rows] for g, rows in label_map.disputed.items()}
        assert groups == {"big: cats": ["s2"], "elk": ["s3"]}
        assert label_map.otherwise("elk").columns().tolist() == [0, 2, 1]
        assert label_map.otherwise("elk").without_source == ()
        assert label_map.columns().tolist() == [0, 2, 2]

    @pytest.mark.parametrize(
        ("disputed", "said"),
        [
            ("elk: dear", "unknown target class: 'dear'"),
            ("elk:", "unknown target class: ''"),
            ("deer", "names no group"),
            (": deer", "names no group"),
        ],
    )
    def test_disputed_row_without_another_target(
        self, path: Path, disputed: str, said: str
    ) -> None:
        text = f"# targets: cat, deer\nsource_id,target,disputed\ns1,cat,\ns2,other,{disputed}\n"
        message = refusal(path, text, ("cat", "deer"), ("s1", "s2"))
        assert said in message
        assert "line 4" in message

    def test_unknown_source_id(self, path: Path) -> None:
        message = refusal(path, SMALL.replace("s2", "s22"))
        assert "unknown source class: 's22'" in message
        assert "line 5" in message
        assert "did you mean 's2'?" in message

    def test_missing_source_ids_are_counted_and_their_place_is_named(self, path: Path) -> None:
        ids = ("s1", "s2", *(f"t{i}" for i in range(9)), "s3")
        message = refusal(path, SMALL, ids=ids)
        assert "lacks 9 source classes ('t0', 't1', 't2', 't3', 't4' and 4 more)" in message
        assert "after line 5" in message

    def test_doubled_source_id(self, path: Path) -> None:
        message = refusal(path, SMALL.replace("s3", "s1"))
        assert "'s1' twice" in message
        assert "line 6" in message
        assert "first row is line 4" in message

    def test_map_of_another_source(self, path: Path) -> None:
        assert "for another source" in refusal(path, SMALL, ids=("U+0030", "U+0031"))

    def test_unknown_target_class(self, path: Path) -> None:
        message = refusal(path, SMALL.replace("tabby,cat", "tabby,cta"))
        assert "unknown target class: 'cta'" in message
        assert "line 4" in message
        assert "did you mean 'cat'?" in message

    def test_row_without_target(self, path: Path) -> None:
        assert "unknown target class: ''" in refusal(path, SMALL.replace("tabby,cat", "tabby,"))
        undeclared = "source_id,target\ns1,cat\ns2,\n"
        assert "unknown target class: ''" in refusal(path, undeclared, None, None)

    def test_declared_target_that_the_dataset_has_not(self, path: Path) -> None:
        message = refusal(path, SMALL.replace("deer", "deers"))
        assert "'deers'" in message
        assert "line 2" in message

    def test_class_of_the_dataset_that_the_map_does_not_know(self, path: Path) -> None:
        message = refusal(path, SMALL, classes=(*SMALL_CLASSES, "frog", "newt"))
        assert "does not know 2 classes ('frog', 'newt') of the dataset" in message
        assert '“# targets: cat,"dog, or wolf",deer,frog,newt”' in message
        assert "--map FILE.csv" in message

    def test_sourceless_class_must_be_declared(self, path: Path) -> None:
        undeclared = "".join(SMALL.splitlines(keepends=True)[2:])
        assert "does not know 1 class ('deer')" in refusal(path, undeclared)

    def test_dataset_with_a_class_named_other(self, path: Path) -> None:
        assert "cannot be named 'other'" in refusal(path, SMALL, classes=(*SMALL_CLASSES, "other"))

    def test_missing_column(self, path: Path) -> None:
        message = refusal(path, SMALL.replace("target,why", "goal,why"))
        assert "lacks the column 'target'" in message
        assert "line 3" in message

    def test_semicolons(self, path: Path) -> None:
        assert "lacks the column" in refusal(path, "source_id;target\ns1;cat\n")

    @pytest.mark.parametrize("text", ["", "\n\n", "# only a note\n", "source_id,target\n"])
    def test_empty(self, path: Path, text: str) -> None:
        assert "is empty" in refusal(path, text)

    def test_not_utf8(self, path: Path) -> None:
        message = refusal(path, SMALL.replace("striped", "gestreift, für").encode("latin-1"))
        assert "not UTF-8" in message
        assert "line 4" in message

    def test_broken_quotes(self, path: Path) -> None:
        message = refusal(path, SMALL.replace('domestic"', "domestic"))
        assert "not a readable CSV file" in message
        assert "line 4" in message

    def test_line_of_another_length(self, path: Path) -> None:
        message = refusal(path, SMALL.replace("s3,table", "s3,table, round"))
        assert "line 6" in message
        assert "double quotes" in message

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(LabelMapError, match="cannot be read"):
            LabelMap.load(tmp_path)

    def test_neither_a_name_nor_a_file(self) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'imagenet_to_stl10'"):
            LabelMap.load("imagenet_to_stl-10")

    def test_misspelt_source_is_not_passed_over(self, path: Path) -> None:
        path.write_text(SMALL.replace("source: nothing that featpipe knows", "source: imagnet"))
        with pytest.raises(UnknownNameError, match="imagnet"):
            LabelMap.load(path)


class TestAnyDamageIsRefused:
    """One line of a built-in map is damaged; the map must not load and the line must be named."""

    TEXT = (FOLDER / "imagenet_to_stl10.csv").read_text("utf-8").splitlines()
    FIRST = 3  # lines 1 and 2 are notes, line 3 is the header: rows are TEXT[3:], lines 4 to 1003
    rows = st.integers(FIRST, len(TEXT) - 1)

    def where(self, folder: Path, lines: list[str]) -> str:
        path = folder / "damaged.csv"
        path.write_text("\n".join(lines) + "\n", "utf-8")
        with pytest.raises(LabelMapError) as caught:
            LabelMap.load(path, STL10)
        return caught.value.details["where"].removeprefix(f"{path}, ")

    @given(rows)
    @settings(max_examples=30, deadline=None)
    def test_dropped_line(self, tmp_path_factory: pytest.TempPathFactory, at: int) -> None:
        lines = [*self.TEXT[:at], *self.TEXT[at + 1 :]]
        assert self.where(tmp_path_factory.mktemp("map"), lines) == f"after line {at}"

    @given(rows, rows)
    @settings(max_examples=30, deadline=None)
    def test_doubled_line(self, tmp_path_factory: pytest.TempPathFactory, at: int, to: int) -> None:
        lines = [*self.TEXT[:to], self.TEXT[at], *self.TEXT[to:]]
        second = max(to + 1, at + 1 if at < to else at + 2)
        assert self.where(tmp_path_factory.mktemp("map"), lines) == f"line {second}"

    @given(rows, st.integers(0, 8), st.sampled_from("0123456789nx"))
    @settings(max_examples=30, deadline=None)
    def test_misspelt_id(
        self, tmp_path_factory: pytest.TempPathFactory, at: int, position: int, letter: str
    ) -> None:
        line = self.TEXT[at]
        wrong = (
            line[:position] + ("y" if line[position] == letter else letter) + line[position + 1 :]
        )
        lines = [*self.TEXT[:at], wrong, *self.TEXT[at + 1 :]]
        ids = [text[:9] for text in self.TEXT]
        twin = ids.index(wrong[:9]) if wrong[:9] in ids else at  # by chance another class's id
        assert self.where(tmp_path_factory.mktemp("map"), lines) == f"line {max(at, twin) + 1}"

    @given(rows, st.text(string.ascii_letters, min_size=1, max_size=8))
    @settings(max_examples=30, deadline=None)
    def test_misspelt_target(
        self, tmp_path_factory: pytest.TempPathFactory, at: int, wrong: str
    ) -> None:
        source_id, name, target, why = self.TEXT[at].split(",", 3)
        if wrong in (*STL10, "other"):
            wrong += "s"
        lines = [*self.TEXT[:at], f"{source_id},{name},{wrong},{why}", *self.TEXT[at + 1 :]]
        assert self.where(tmp_path_factory.mktemp("map"), lines) == f"line {at + 1}"
        assert target in (*STL10, "other")


def test_cells_that_were_made_safe_for_spreadsheets_are_read_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "safe.csv"
    path.write_text("source_id,source_name,target,why\ns1,'-tabby,'=cat,'@home\ns2,wolf,other,\n")
    found = LabelMap.load(path, ("=cat",), ("s1", "s2"))
    assert (found.rows[0].source_name, found.rows[0].target, found.rows[0].why) == (
        "-tabby", "=cat", "@home",
    )  # fmt: skip


@pytest.mark.timeout(20)
def test_a_fifo_or_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.csv")
    with (tmp_path / "sparse.csv").open("wb") as stream:
        stream.truncate(1 << 40)
    for name, why in (("fifo.csv", "a FIFO"), ("sparse.csv", "1099511627776 bytes")):
        with pytest.raises(LabelMapError, match="cannot be read") as caught:
            LabelMap.load(tmp_path / name)
        assert why in str(caught.value)
