"""Draft the built-in label maps from WordNet's own hierarchy and the decisions made by hand.

Run it in the repository root, with WordNet's database (Debian: ``apt-get install wordnet-base``)::

    python tools/make_labelmaps.py                  # writes featpipe/labelmap/*.csv
    python tools/make_labelmaps.py --check          # only says which files would change
    python tools/make_labelmaps.py --class-index imagenet_class_index.json

A row of a map is decided by the first of these that speaks:

1. ``tools/labelmap_decisions.csv``: decided by a person, one class at a time, with the reason;
2. the kind-of hierarchy: a class under the synset of a target (``RULES``) maps to that target. A
   class under two of them (a minivan is a car and a truck) stops the script: decide it by hand;
3. neither: the class is ``other``, and the reason names what it is instead.

Whichever spoke, rows of a group out of ``DISPUTED`` name another target that can be argued for.

ImageNet's class ids are byte offsets in the file ``data.noun`` of WordNet 3.0, so no name is ever
looked up. ``--class-index`` reads the usual JSON file (index → [id, name]) and rewrites
``imagenet_classes.csv``; without it that file is taken as it is.

Needs the standard library only.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

REPOSITORY = Path(__file__).resolve().parents[1]
LABELMAPS = REPOSITORY / "featpipe" / "labelmap"
DECISIONS = Path(__file__).with_name("labelmap_decisions.csv")
OTHER = "other"
COLUMNS = ("source_id", "source_name", "target", "why", "disputed")

# Target class → the synset whose kinds it takes. The cat is WordNet's domestic cat: cat.n.01 would
# let the cougar and the lynx in. STL-10's ships are ships, CIFAR-10's include rowing boats.
STL10 = {
    "airplane": "airplane.n.01",
    "bird": "bird.n.01",
    "car": "car.n.01",
    "cat": "domestic_cat.n.01",
    "deer": "deer.n.01",
    "dog": "dog.n.01",
    "horse": "horse.n.01",
    "monkey": "monkey.n.01",
    "ship": "ship.n.01",
    "truck": "truck.n.01",
}
CIFAR10 = {
    "airplane": "airplane.n.01",
    "automobile": "car.n.01",
    "bird": "bird.n.01",
    "cat": "domestic_cat.n.01",
    "deer": "deer.n.01",
    "dog": "dog.n.01",
    "frog": "frog.n.01",
    "horse": "horse.n.01",
    "ship": "vessel.n.02",
    "truck": "truck.n.01",
}
RULES = {"imagenet_to_stl10": STL10, "imagenet_to_cifar10": CIFAR10}
BROAD = "imagenet_to_stl10"
NARROW, WILDCATS = f"{BROAD}_narrow", f"{BROAD}_wildcats"
LOOKED = (
    "The label map imagenet_to_stl10_wildcats was chosen after a look at the labels of STL-10's "
    "training images, and its accuracy on them is optimistic for that reason."
)

# Classes for which another target can be argued: group, that target, and whose kinds they are.
DISPUTED = (
    ("antelopes", "deer", ("antelope.n.01",)),
    ("apes", "monkey", ("ape.n.01",)),
    ("wild canids", "dog", ("wolf.n.01", "wild_dog.n.01", "fox.n.01")),
    ("wildcats", "cat", ("wildcat.n.03",)),
    ("horse cart", "horse", ("horse_cart.n.01",)),
)

# Classes that come near a target and are not it: (target, synset, what to say).
NEAR_MISSES = (
    ("cat", "big_cat.n.01", "a big cat (big_cat.n.01), which WordNet sets apart from cat.n.01"),
    ("dog", "wolf.n.01", "a wolf: a canine, but dog.n.01 is the domesticated animal"),
    ("dog", "fox.n.01", "a fox: a canine but not a dog"),
    ("monkey", "ape.n.01", "an ape: a primate but not a monkey"),
    ("monkey", "lemur.n.01", "a lemur: a primate but not a monkey"),
    ("deer", "antelope.n.01", "an antelope: a bovid with horns, not a deer with antlers"),
    ("deer", "bovid.n.01", "a bovid with horns, not a deer with antlers"),
    ("deer", "ungulate.n.01", "a hoofed mammal, but neither a deer nor a horse"),
    ("frog", "amphibian.n.03", "an amphibian, but not a frog"),
    ("truck", "train.n.01", "a train: runs on rails"),
    ("truck", "locomotive.n.01", "a locomotive: runs on rails"),
    ("truck", "streetcar.n.01", "runs on rails"),
    ("truck", "bicycle.n.01", "a bicycle, without a motor"),
    ("truck", "motorcycle.n.01", "a motorcycle, on two wheels"),
    ("truck", "motor_scooter.n.01", "a scooter, on two wheels"),
    ("truck", "tracked_vehicle.n.01", "runs on tracks: outside car.n.01 and truck.n.01"),
    ("truck", "cart.n.01", "a cart, without a motor"),
    ("truck", "handcart.n.01", "pushed by hand"),
    ("truck", "sled.n.01", "a sled, without wheels"),
    ("truck", "wheeled_vehicle.n.01", "a wheeled vehicle, but neither a car nor a truck"),
)

# What a reader recognises; the nearest one above a class is named in brackets.
# fmt: off
FAMILIAR = (
    "fish.n.01", "snake.n.01", "lizard.n.01", "turtle.n.02", "reptile.n.01", "amphibian.n.03",
    "spider.n.01", "arachnid.n.01", "insect.n.01", "crustacean.n.01", "mollusk.n.01",
    "invertebrate.n.01", "rodent.n.01", "marsupial.n.01", "bear.n.01", "carnivore.n.01",
    "ungulate.n.01", "primate.n.02", "mammal.n.01", "animal.n.01", "person.n.01", "fungus.n.01",
    "flower.n.01", "fruit.n.01", "vegetable.n.01", "beverage.n.01", "food.n.01", "food.n.02",
    "geological_formation.n.01", "musical_instrument.n.01", "clothing.n.01", "footwear.n.02",
    "furniture.n.01", "building.n.01", "structure.n.01", "container.n.01", "tool.n.01",
    "weapon.n.01", "computer.n.01", "device.n.01", "equipment.n.01", "vehicle.n.01",
    "covering.n.02", "fabric.n.01", "instrumentality.n.03", "artifact.n.01", "communication.n.02",
    "physical_entity.n.01", "entity.n.01",
)
# fmt: on

LOOK_ALIKES = {"O": "0", "o": "0", "I": "1", "l": "1", "Z": "2", "z": "2", "S": "5", "s": "5"}

Row = tuple[str, ...]  # the cells under COLUMNS


class WordNet:
    """The nouns of WordNet 3.0, read from the database files themselves (see ``wndb(5WN)``)."""

    def __init__(self, folder: Path) -> None:
        self._data = (folder / "data.noun").read_bytes()
        self._senses: dict[str, list[int]] = {}
        for line in (folder / "index.noun").read_text("ascii").splitlines():
            if not line.startswith(" "):  # the licence text is indented
                lemma, _, count, *rest = line.split()
                self._senses[lemma] = [int(offset) for offset in rest[-int(count) :]]

    def synset(self, sense: str) -> int:
        """Return the offset of a sense such as ``"dog.n.01"``."""
        lemma, _, number = sense.rsplit(".", 2)
        return self._senses[lemma][int(number) - 1]

    def lemma(self, offset: int) -> str:
        """Return the first word of a synset, for people."""
        return self._fields(offset)[4].replace("_", " ")

    def hypernyms(self, offset: int) -> list[int]:
        """Return the synsets directly above, instances included."""
        fields = self._fields(offset)
        start = 4 + 2 * int(fields[3], 16)  # a word and its sense id for each lemma
        pointers = [
            fields[start + 1 + 4 * i : start + 5 + 4 * i] for i in range(int(fields[start]))
        ]
        return [int(target) for kind, target, _, _ in pointers if kind in ("@", "@i")]

    def distances(self, offset: int) -> dict[int, int]:
        """Return every synset at or above one, with the number of steps up to it."""
        found, level = {offset: 0}, [offset]
        while level:
            level = [up for at in level for up in self.hypernyms(at) if up not in found]
            steps = max(found.values()) + 1
            found.update(dict.fromkeys(level, steps))
        return found

    def _fields(self, offset: int) -> list[str]:
        end = self._data.index(b" | ", offset)
        return self._data[offset:end].decode("ascii").split()


@dataclass(frozen=True)
class Drafter:
    """Decides the rows of one map."""

    wordnet: WordNet
    rules: dict[str, str]
    decided: dict[str, tuple[str, str]]

    def row(self, source_id: str, name: str) -> Row:
        """Return one row; a class that two rules claim and nobody decided is an error."""
        above = self.wordnet.distances(int(source_id[1:]))
        target, why = self.decided.get(source_id) or self._derived(source_id, name, above)
        disputed = ""
        for group, other, senses in DISPUTED:
            if other in self.rules and any(self.wordnet.synset(s) in above for s in senses):
                disputed = f"{group}: {other if other != target else OTHER}"
        return source_id, name, target, why, disputed

    def _derived(self, source_id: str, name: str, above: dict[int, int]) -> tuple[str, str]:
        """Return target and reason by the rules and the hierarchy alone."""
        parent = self.wordnet.hypernyms(int(source_id[1:]))[0]
        kind = self.wordnet.lemma(parent)
        claims = {t: s for t, s in self.rules.items() if self.wordnet.synset(s) in above}
        if len(claims) > 1:
            sys.exit(f"{source_id} {name} is claimed by {claims}: decide it in {DECISIONS.name}")
        for target, sense in claims.items():
            direct = self.wordnet.synset(sense) == parent
            why = f"WordNet: a kind of {sense if direct else f'{kind}, under {sense}'}"
            return target, why
        for target, sense, reason in NEAR_MISSES:
            if target in self.rules and self.wordnet.synset(sense) in above:
                return OTHER, reason
        familiar = min(
            (s for s in FAMILIAR if self.wordnet.synset(s) in above),
            key=lambda sense: above[self.wordnet.synset(sense)],
        )
        word = familiar.split(".")[0].replace("_", " ")
        return OTHER, f"WordNet: a kind of {kind}" + f" ({word})" * (word not in kind)


def imagenet_names(wordnet: WordNet, class_index: Path) -> list[tuple[str, str]]:
    """Return id and readable name of each class; equal names get their hypernym in brackets."""
    facts = json.loads(class_index.read_text("utf-8"))
    pairs = [facts[str(i)] for i in range(len(facts))]
    occurs = Counter(name.lower() for _, name in pairs)
    named = []
    for source_id, raw in pairs:
        name = raw.replace("_", " ")
        if occurs[raw.lower()] > 1:
            above = wordnet.hypernyms(int(source_id[1:]))[0]
            name = f"{name} ({wordnet.lemma(above)})"
        named.append((source_id, name))
    return named


def read_decisions(names: dict[str, str]) -> dict[str, dict[str, tuple[str, str]]]:
    """Return map → source id → (target, why)."""
    decisions: dict[str, dict[str, tuple[str, str]]] = {}
    with DECISIONS.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if names[row["source_id"]] != row["source_name"]:
                sys.exit(f"{DECISIONS.name}: {row['source_id']} is {names[row['source_id']]!r}")
            for name in row["maps"].split():
                decisions.setdefault(name, {})[row["source_id"]] = (row["target"], row["why"])
    return decisions


def narrow_rows(broad: list[Row], chosen: dict[str, tuple[str, str]]) -> list[Row]:
    """Return the broad map cut to one source class a target."""
    champion = {chosen[row[0]][0]: row[1] for row in broad if row[0] in chosen}
    rows: list[Row] = []
    for source_id, name, target, why, _ in broad:
        if source_id in chosen:
            rows.append((source_id, name, *chosen[source_id]))
        elif target != OTHER:
            rows.append((source_id, name, OTHER, f"only {champion[target]} stands for {target}"))
        else:
            rows.append((source_id, name, target, why))
    return rows


def glyph_rows() -> list[Row]:
    """Return the map of 62 glyphs to ten digits."""
    rows: list[Row] = []
    for glyph in digits + ascii_uppercase + ascii_lowercase:
        why, disputed = unicodedata.name(glyph).lower(), ""
        if glyph in LOOK_ALIKES:
            why += f", though drawn much like {LOOK_ALIKES[glyph]}"
            disputed = f"look-alikes: {LOOK_ALIKES[glyph]}"
        target = glyph if glyph in digits else OTHER
        rows.append((f"U+{ord(glyph):04X}", glyph, target, why, disputed))
    return rows


def as_csv(rows: Iterable[Sequence[object]], header: Sequence[str], notes: Sequence[str]) -> str:
    """Return the text of one file."""
    text = io.StringIO()
    text.writelines(f"# {note}\n" for note in notes)
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def draft(wordnet: WordNet, class_index: Path | None) -> dict[str, str]:
    """Return file name → text of all built-in files."""
    if class_index is not None:
        classes = imagenet_names(wordnet, class_index)
    else:
        with (LABELMAPS / "imagenet_classes.csv").open(encoding="utf-8", newline="") as stream:
            classes = [(row["source_id"], row["name"]) for row in csv.DictReader(stream)]
    decisions = read_decisions(dict(classes))
    rows = {
        name: [Drafter(wordnet, rules, decisions[name]).row(*pair) for pair in classes]
        for name, rules in RULES.items()
    }
    files = {
        f"{name}.csv": as_csv(
            rows[name], COLUMNS, ["source: imagenet", f"targets: {', '.join(rules)}"]
        )
        for name, rules in RULES.items()
    }
    notes = ["source: imagenet", f"targets: {', '.join(STL10)}", f"variant of: {BROAD}"]
    narrow = narrow_rows(rows[BROAD], decisions[NARROW])
    files[f"{NARROW}.csv"] = as_csv(narrow, COLUMNS[: len(narrow[0])], notes)
    drafter = Drafter(wordnet, STL10, decisions[BROAD] | decisions[WILDCATS])
    wildcats = [drafter.row(*pair) for pair in classes]
    files[f"{WILDCATS}.csv"] = as_csv(wildcats, COLUMNS, [*notes, f"note: {LOOKED}"])
    glyphs = glyph_rows()
    notes = ["source: glyphs", f"targets: {', '.join(digits)}"]
    files["glyphs_to_digits.csv"] = as_csv(glyphs, COLUMNS, notes)
    for name, pairs in (("imagenet", classes), ("glyph", [row[:2] for row in glyphs])):
        numbered = [(index, *pair) for index, pair in enumerate(pairs)]
        files[f"{name}_classes.csv"] = as_csv(numbered, ("index", "source_id", "name"), [])
    return files


def main() -> int:
    """Write or check the files; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--class-index", type=Path, help="JSON: index → [WordNet id, name]")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    files = draft(WordNet(options.wordnet), options.class_index)
    changed = [
        name
        for name, text in files.items()
        if not (LABELMAPS / name).exists() or (LABELMAPS / name).read_text("utf-8") != text
    ]
    print("changed:", ", ".join(changed) or "nothing")
    if not options.check:
        for name in changed:
            (LABELMAPS / name).write_text(files[name], "utf-8")
    return int(options.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
