"""Label maps: what the built-in ones say, and which one is used where none is named."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from featpipe import labelmap
from featpipe.errors import LabelMapError, UnknownNameError
from featpipe.labelmap import LabelMap, SourceClasses, builtin_maps, for_pair

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(labelmap.__file__).parent
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@pytest.fixture(scope="module")
def stl10() -> LabelMap:
    return LabelMap.load("imagenet_to_stl10", STL10)


@pytest.fixture(scope="module")
def cifar10() -> LabelMap:
    return LabelMap.load("imagenet_to_cifar10", CIFAR10)


def target_of(label_map: LabelMap) -> dict[str, str]:
    return {row.source_name: row.target for row in label_map.rows}


def counts(label_map: LabelMap) -> dict[str, int]:
    return {target: len(label_map.sources[target]) for target in label_map.targets}


class TestBuiltInMaps:
    @pytest.mark.parametrize("name", builtin_maps())
    def test_is_complete_in_order_and_gives_a_reason_for_every_row(self, name: str) -> None:
        label_map = LabelMap.load(name)
        source = SourceClasses.load("glyphs" if name.startswith("glyphs") else "imagenet")
        assert [row.source_id for row in label_map.rows] == list(source.ids)
        assert tuple(row.source_name for row in label_map.rows) == source.names
        assert [row.line for row in label_map.rows] == sorted(row.line for row in label_map.rows)
        assert all(len(row.why) > 5 for row in label_map.rows)

    def test_counts_of_stl10(self, stl10: LabelMap) -> None:
        # WordNet: 118 kinds of dog.n.01, 59 of bird.n.01, 13 of monkey.n.01, 5 of domestic_cat.n.01
        assert counts(stl10) == {
            **{"airplane": 2, "bird": 59, "car": 10, "cat": 5, "deer": 0},
            **{"dog": 118, "horse": 1, "monkey": 13, "ship": 12, "truck": 7},
        }
        assert len(stl10.sources["other"]) == 773
        assert stl10.without_source == ("deer",)

    def test_counts_of_cifar10(self, cifar10: LabelMap) -> None:
        assert counts(cifar10) == {
            **{"airplane": 2, "automobile": 10, "bird": 59, "cat": 5, "deer": 0},
            **{"dog": 118, "frog": 3, "horse": 1, "ship": 15, "truck": 6},
        }
        assert cifar10.without_source == ("deer",)

    def test_dogs_are_one_block_of_torchvisions_order(self, stl10: LabelMap) -> None:
        # Known of ImageNet-1k: the breeds are the columns 151 (Chihuahua) to 268 (hairless).
        dogs = np.flatnonzero(stl10.columns() == STL10.index("dog"))
        assert dogs.tolist() == list(range(151, 269))

    def test_birds_are_three_blocks_of_torchvisions_order(self, stl10: LabelMap) -> None:
        birds = np.flatnonzero(stl10.columns() == STL10.index("bird"))
        blocks = [*range(7, 25), *range(80, 101), *range(127, 147)]
        assert birds.tolist() == blocks

    @pytest.mark.parametrize(
        ("target", "names"),
        [
            ("airplane", "airliner warplane"),
            ("cat", "tabby|tiger cat|Persian cat|Siamese cat|Egyptian cat"),
            ("horse", "sorrel"),
            (
                "truck",
                "fire engine|garbage truck|moving van|pickup|snowplow|tow truck|trailer truck",
            ),
        ],
    )
    def test_exactly_these_of_stl10(self, stl10: LabelMap, target: str, names: str) -> None:
        expected = names.split("|") if "|" in names else names.split()
        assert sorted(stl10.sources[target]) == sorted(expected)

    @pytest.mark.parametrize(
        "name",
        [
            *("lion", "tiger", "leopard", "snow leopard", "jaguar", "cheetah", "cougar", "lynx"),
            *("dingo", "dhole", "African hunting dog", "timber wolf", "coyote", "red fox", "hyena"),
            *("orangutan", "gorilla", "chimpanzee", "gibbon", "siamang"),
            *("Madagascar cat", "indri"),
            *("hartebeest", "impala", "gazelle", "ibex", "ox", "zebra", "llama"),
            *("plane", "wing", "airship", "balloon", "space shuttle", "hen-of-the-woods"),
            *("passenger car", "freight car", "streetcar", "car wheel", "school bus", "minibus"),
            *("tractor", "harvester", "forklift", "tank", "half track", "golfcart", "police van"),
            *("amphibian", "crane (lifting device)", "horse cart", "recreational vehicle"),
        ],
    )
    def test_near_misses_are_other(self, stl10: LabelMap, cifar10: LabelMap, name: str) -> None:
        assert target_of(stl10)[name] == target_of(cifar10)[name] == "other"

    @pytest.mark.parametrize(
        ("name", "in_stl10", "in_cifar10"),
        [
            ("pickup", "truck", "other"),  # CIFAR-10 leaves pickup trucks out by definition
            ("minivan", "car", "automobile"),
            ("canoe", "other", "ship"),  # CIFAR-10's ships include rowing boats
            ("gondola", "other", "ship"),
            ("speedboat", "other", "ship"),
            ("schooner", "ship", "ship"),
            ("tree frog", "other", "frog"),
            ("macaque", "monkey", "other"),
            ("crane (wading bird)", "bird", "bird"),
            ("hen", "bird", "bird"),
            ("king penguin", "bird", "bird"),
        ],
    )
    def test_disputed_classes(
        self, stl10: LabelMap, cifar10: LabelMap, name: str, in_stl10: str, in_cifar10: str
    ) -> None:
        assert target_of(stl10)[name] == in_stl10
        assert target_of(cifar10)[name] == in_cifar10

    def test_narrow_takes_one_class_for_each_target_out_of_the_broad_map(
        self, stl10: LabelMap
    ) -> None:
        narrow = LabelMap.load("imagenet_to_stl10_narrow", STL10)
        assert counts(narrow) == {target: int(target != "deer") for target in STL10}
        broad = target_of(stl10)
        assert all(t in ("other", broad[name]) for name, t in target_of(narrow).items())

    def test_wildcats_differs_from_the_default_in_cougar_and_lynx_alone(
        self, stl10: LabelMap
    ) -> None:
        wildcats = LabelMap.load("imagenet_to_stl10_wildcats", STL10)
        differ = set(target_of(wildcats).items()) - set(target_of(stl10).items())
        assert differ == {("cougar", "cat"), ("lynx", "cat")}
        np.testing.assert_array_equal(wildcats.columns(), stl10.otherwise("wildcats").columns())
        np.testing.assert_array_equal(wildcats.otherwise("wildcats").columns(), stl10.columns())
        assert "chosen after a look at the labels" in wildcats.note
        assert stl10.note == ""

    def test_disputed_rows(self, stl10: LabelMap, cifar10: LabelMap) -> None:
        groups = {
            group: (len(rows), {(row.target, row.alternative[1]) for row in rows})
            for group, rows in stl10.disputed.items()
        }
        assert groups == {
            "wild canids": (11, {("other", "dog")}),
            "wildcats": (2, {("other", "cat")}),
            "antelopes": (3, {("other", "deer")}),
            "apes": (5, {("other", "monkey")}),
            "horse cart": (1, {("other", "horse")}),
        }
        assert set(cifar10.disputed) == set(groups) - {"apes"}  # CIFAR-10 has no monkeys
        (look_alikes,) = LabelMap.load("glyphs_to_digits").disputed.values()
        assert {row.source_name: row.alternative[1] for row in look_alikes} == {
            **{"O": "0", "o": "0", "I": "1", "l": "1", "Z": "2", "z": "2", "S": "5", "s": "5"}
        }

    def test_glyphs_map_digits_to_themselves_and_letters_to_other(self) -> None:
        digits = LabelMap.load("glyphs_to_digits", list("0123456789"))
        assert digits.columns().tolist() == [*range(10), *[10] * 52]
        assert digits.without_source == ()
        assert all(chr(int(row.source_id[2:], 16)) == row.source_name for row in digits.rows)


class TestSourceClasses:
    def test_names_of_imagenet_are_unique_whatever_the_case(self) -> None:
        # The usual index has crane and maillot twice, and cardigan twice but for the case.
        assert set(Counter(SourceClasses.load("imagenet").names).values()) == {1}
        lower = [name.lower().split(" (")[0] for name in SourceClasses.load("imagenet").names]
        assert {n for n, k in Counter(lower).items() if k > 1} == {"crane", "maillot", "cardigan"}

    def test_order_is_that_of_torchvision(self) -> None:
        torchvision = importlib.util.find_spec("torchvision")
        assert torchvision is not None
        assert torchvision.origin is not None
        # Run by itself: importing torchvision for a list of names takes seconds.
        meta = runpy.run_path(str(Path(torchvision.origin).with_name("models") / "_meta.py"))
        categories = meta["_IMAGENET_CATEGORIES"]
        ours = SourceClasses.load("imagenet").names
        differ = {
            name
            for name, theirs in zip(ours, categories, strict=True)
            if name.split(" (")[0].lower() != theirs.lower()
        }
        assert differ == {
            "crane (wading bird)",
            "maillot (swimsuit)",
        }  # "crane bird", "… tank suit"

    @pytest.mark.real
    def test_ids_are_those_of_the_usual_index(self, shared: Path) -> None:
        index = json.loads((shared / "reference" / "imagenet_class_index.json").read_text())
        assert SourceClasses.load("imagenet").ids == tuple(index[str(i)][0] for i in range(1000))

    def test_unknown_source_names_the_nearest(self) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'imagenet'"):
            SourceClasses.load("imagnet")


class TestColumns:
    def test_follow_the_given_source_order_and_the_datasets_class_order(self) -> None:
        ids = SourceClasses.load("imagenet").ids
        shuffled = np.random.default_rng(0).permutation(1000)
        straight = LabelMap.load("imagenet_to_stl10", STL10)
        turned = LabelMap.load("imagenet_to_stl10", STL10[::-1], [ids[i] for i in shuffled])
        columns = straight.columns()
        assert columns.dtype == np.int64
        assert columns.shape == (1000,)
        expected = np.where(columns < 10, 9 - columns, 10)[shuffled]
        np.testing.assert_array_equal(turned.columns(), expected)

    def test_fingerprint_changes_with_what_the_map_does_and_with_nothing_else(
        self, tmp_path: Path
    ) -> None:
        original = LabelMap.load("imagenet_to_stl10")
        text = (FOLDER / "imagenet_to_stl10.csv").read_text("utf-8")
        reworded = tmp_path / "reworded.csv"
        reworded.write_text(text.replace("a wolf:", "wolves are wild:"), "utf-8")
        wildcats = tmp_path / "wildcats.csv"
        wildcats.write_text(text.replace("lynx,other", "lynx,cat"), "utf-8")
        assert LabelMap.load(reworded).fingerprint == original.fingerprint
        assert LabelMap.load(wildcats).fingerprint != original.fingerprint
        undisputed = tmp_path / "undisputed.csv"
        undisputed.write_text(text.replace("wildcats: cat", ""), "utf-8")
        assert LabelMap.load(undisputed).fingerprint != original.fingerprint
        assert LabelMap.load("imagenet_to_stl10", STL10[::-1]).fingerprint != original.fingerprint


class TestForPair:
    @pytest.mark.parametrize(
        ("source", "classes", "name"),
        [
            ("imagenet", STL10, "imagenet_to_stl10"),
            ("imagenet", STL10[::-1], "imagenet_to_stl10"),
            ("imagenet", CIFAR10, "imagenet_to_cifar10"),
            ("glyphs", tuple("0123456789"), "glyphs_to_digits"),
        ],
    )
    def test_finds_the_map_by_its_targets(
        self, source: str, classes: tuple[str, ...], name: str
    ) -> None:
        found = for_pair(SourceClasses.load(source), classes)
        assert found.name == name
        assert found.targets == classes

    @pytest.mark.parametrize(
        ("source", "classes"),
        [
            (SourceClasses.load("imagenet"), ("cat", "dog")),
            (SourceClasses.load("glyphs"), STL10),
            (SourceClasses(CIFAR10, CIFAR10), STL10),
            (SourceClasses.load("imagenet"), ()),
        ],
    )
    def test_says_what_to_do_where_there_is_none(
        self, source: SourceClasses, classes: tuple[str, ...]
    ) -> None:
        with pytest.raises(LabelMapError) as caught:
            for_pair(source, classes)
        assert "--map FILE.csv" in str(caught.value)
        assert "featpipe labelmap show" in str(caught.value)


class TestIdentity:
    """No map is needed where the classes of the dataset are classes of the source."""

    SOURCE = SourceClasses(("n1", "n2", "n3", "n4"), ("cat", "crane", "dog", "crane"))

    @pytest.mark.parametrize(
        ("classes", "columns"),
        [
            (("dog", "cat"), [1, 2, 0, 2]),  # by name
            (("n3", "n1"), [1, 2, 0, 2]),  # by id
            (("n4", "cat", "n2", "dog"), [1, 2, 3, 0]),  # by both; nothing is "other"
        ],
    )
    def test_maps_each_class_to_itself(self, classes: tuple[str, ...], columns: list[int]) -> None:
        found = LabelMap.identity(self.SOURCE, classes)
        assert found is not None
        assert found.name == labelmap.IDENTITY
        assert found.targets == classes
        assert found.columns().tolist() == columns
        assert found.without_source == ()

    @pytest.mark.parametrize(
        "classes",
        [("cat", "cow"), ("cat", "crane"), ("cat", "n1"), ("cat", "other"), ()],
        ids=["unknown", "ambiguous name", "one class twice", "other", "none"],
    )
    def test_is_not_guessed(self, classes: tuple[str, ...]) -> None:
        assert LabelMap.identity(self.SOURCE, classes) is None

    def test_an_id_wins_over_a_name(self) -> None:
        source = SourceClasses(("a", "b"), ("b", "a"))
        found = LabelMap.identity(source, ("a",))
        assert found is not None
        assert found.columns().tolist() == [0, 1]

    def test_imagenette_by_its_folders_and_a_checkpoint_of_cifar10(self) -> None:
        imagenet = SourceClasses.load("imagenet")
        tench, church = "n01440764", "n03028079"
        found = for_pair(imagenet, (tench, church))
        assert found.name == labelmap.IDENTITY
        assert np.flatnonzero(found.columns() < 2).tolist() == [
            imagenet.ids.index(tench),
            imagenet.ids.index(church),
        ]
        assert for_pair(SourceClasses(CIFAR10, CIFAR10), CIFAR10).columns().tolist() == [*range(10)]

    def test_a_built_in_map_is_preferred(self) -> None:
        assert for_pair(SourceClasses.load("glyphs"), "0123456789").name == "glyphs_to_digits"


def test_the_maps_are_what_their_script_makes() -> None:
    """Nobody edited a generated file by hand, and the script still runs."""
    if not Path("/usr/share/wordnet/data.noun").exists():
        pytest.skip("WordNet's database is not here (Debian: apt-get install wordnet-base)")
    script = REPOSITORY / "tools" / "make_labelmaps.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "changed: nothing\n"), done.stderr


def test_maps_load_from_a_copy_of_the_package_data(tmp_path: Path) -> None:
    """A built-in file that a user copied to start from works as a file of their own."""
    copied = shutil.copy(FOLDER / "imagenet_to_stl10.csv", tmp_path / "mine.csv")
    mine = LabelMap.load(copied, STL10)
    assert mine.fingerprint == LabelMap.load("imagenet_to_stl10", STL10).fingerprint
