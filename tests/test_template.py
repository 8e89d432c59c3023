"""``featpipe init``: a recipe for one's own images, whatever their layout."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featpipe.errors import DataError, UnknownNameError, UsageError, WeightsError
from featpipe.steps import Context
from featpipe.steps.plan import Plan
from featpipe.steps.recipe import read_recipe
from featpipe.template import guess_layout, write_recipe
from featpipe.workspace import Workspace


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Context(Workspace(tmp_path))


def draw(folder, *names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(path)


def test_a_folder_of_class_folders(context, tmp_path):
    draw(tmp_path / "my photos", "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    outcome = write_recipe("pets", tmp_path / "my photos", "resnet18", None, context)
    text = (tmp_path / "pets.yaml").read_text()
    assert "2 classes, 4 images, no test split" in text
    assert "featpipe run pets.yaml" in outcome.message
    plan = Plan.of(read_recipe(tmp_path / "pets.yaml"), context)
    assert [task.name for task in plan.tasks] == [
        *("extract", "svm", "logistic", "knn", "audit", "compare", "report")
    ]
    assert plan.tasks[0].step.dataset == f"folder:{tmp_path / 'my photos'}"
    (_, status), *_ = plan.forecast()
    assert status.why == "4 of all to embed"
    assert "# group-by: folder" in text
    assert "if several images show the same patient, video or place" in outcome.message


def test_train_and_test_folders(context, tmp_path):
    draw(tmp_path / "a", "train/x/1.png", "train/y/2.png", "test/x/3.png")
    (tmp_path / "own.safetensors").touch()
    write_recipe("a", None, "resnet50", "own.safetensors", context)
    text = (tmp_path / "a.yaml").read_text()
    assert "Trained on 'train', tested once on 'test'." in text
    step = read_recipe(tmp_path / "a.yaml").steps[0].variants[0].step
    assert (step.dataset, step.weights) == ("folder:a", "own.safetensors")


def test_a_folder_whose_name_cannot_be_a_recipe_is_told_another(context, tmp_path):
    (tmp_path / "My pets").mkdir()
    with pytest.raises(UsageError, match="cannot be a name") as error:
        write_recipe("My pets", None, "glyphnet", None, context)
    assert "featpipe init my-pets --data 'My pets'" in str(error.value)


def test_folders_within_the_classes_may_be_groups(context, tmp_path):
    draw(tmp_path / "scans", *(f"{label}/p{n}/{n}.png" for label in "ab" for n in (1, 2)))
    message = write_recipe("scans", None, "resnet18", None, context).message
    assert "the classes have subfolders: if several images show" in message
    recipe = tmp_path / "scans.yaml"
    recipe.write_text(recipe.read_text().replace("# group-by: folder", "group-by: folder"))
    assert read_recipe(recipe).steps[0].variants[0].step.group_by == "folder"
    rows = "".join(f"scans/{x}/p{n}/{n}.png,{x},p{n}\n" for x in "ab" for n in (1, 2))
    (tmp_path / "known.csv").write_text(f"path,label,group\n{rows}")
    assert "patient" not in write_recipe("known.csv", None, "resnet18", None, context).message
    (tmp_path / "loose.csv").write_text("path,label\n" + rows.replace(",p1", "").replace(",p2", ""))
    message = write_recipe("loose.csv", None, "resnet18", None, context).message
    assert "on the same side of every split: add a column 'group' to loose.csv" in message
    assert "have subfolders" not in message


def test_two_folders_wherever_they_are(context, tmp_path):
    draw(tmp_path / "here" / "summer", "x/1.png", "x/2.png", "=y/3.png")
    draw(tmp_path / "there" / "winter", "x/1.png", "=y/4.png")
    folders = tmp_path / "here" / "summer", tmp_path / "there" / "winter"
    write_recipe("both", folders[0], "resnet18", None, context, folders[1])
    text = (tmp_path / "both.yaml").read_text()
    assert "2 classes, images: 3 train, 2 test" in text
    assert "Trained on 'train', tested once on 'test'." in text
    lines = (tmp_path / "both.csv").read_text().splitlines()
    assert lines[0] == "path,label,split"
    assert {"here/summer/x/1.png,x,train", "there/winter/=y/4.png,'=y,test"} <= {*lines}
    step = read_recipe(tmp_path / "both.yaml").steps[0].variants[0].step
    assert step.dataset == "csv:both.csv"
    with pytest.raises(UsageError, match="exists already"):
        write_recipe("both", folders[0], "resnet18", None, context, folders[1])
    draw(tmp_path / "else", "z/1.png")
    with pytest.raises(DataError, match="classes that the training images do not have") as caught:
        write_recipe("other", folders[0], "resnet18", None, context, tmp_path / "else")
    assert caught.value.details["got"] == "z"
    assert not (tmp_path / "other.csv").exists()


@pytest.mark.parametrize("table", ["list.csv", "list.CSV"])
def test_a_table_by_its_own_name(context, tmp_path, table):
    draw(tmp_path, "1.png", "2.png", "3.png", "4.png")
    rows = "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(1, 5))
    (tmp_path / table).write_text(f"path,label\n{rows}")
    assert write_recipe(table, None, "resnet18", None, context).paths[0].name == "list.yaml"
    step = read_recipe(tmp_path / "list.yaml").steps[0].variants[0].step
    assert step.dataset == f"csv:{table}"


def test_what_could_not_run_is_not_written(context, tmp_path):
    draw(tmp_path / "one", "cat/1.png", "cat/2.png")
    draw(tmp_path / "two", "cat/1.png", "dog/2.png")
    with pytest.raises(DataError, match="have one class"):
        write_recipe("one", None, "resnet18", None, context)
    with pytest.raises(DataError, match="have one class"):
        write_recipe("both", tmp_path / "one", "resnet18", None, context, tmp_path / "two")
    with pytest.raises(WeightsError, match="no such weights"):
        write_recipe("two", None, "resnet18", "gone.safetensors", context)
    for name in ("a b", "..", "#"):
        with pytest.raises(UsageError, match="cannot be a name"):
            write_recipe(name, tmp_path / "two", "resnet18", None, context)
    assert not [*tmp_path.glob("*.yaml"), *tmp_path.glob("*.csv")]
    assert (
        "too few to train and test: cat, dog"
        in write_recipe("two", None, "resnet18", None, context).message
    )


def test_a_folder_with_a_table(tmp_path):
    draw(tmp_path / "b", "1.png", "2.png")
    (tmp_path / "b" / "notes.csv").write_text("this,that\n1,2\n")
    (tmp_path / "b" / "labels.csv").write_text("path,label\n1.png,x\n2.png,y\n")
    assert guess_layout(tmp_path / "b") == f"csv:{tmp_path / 'b' / 'labels.csv'}"
    (tmp_path / "b" / "more.csv").write_text("path,label\n1.png,x\n")
    with pytest.raises(DataError, match="several tables"):
        guess_layout(tmp_path / "b")


def test_a_file(tmp_path):
    np.savez(tmp_path / "c.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=[0, 1, 0, 1])
    assert guess_layout(tmp_path / "c.npz") == f"npz:{tmp_path / 'c.npz'}"
    (tmp_path / "c.txt").touch()
    with pytest.raises(DataError, match="lists no images"):
        guess_layout(tmp_path / "c.txt")


def test_a_table_may_hold_images_without_label(context, tmp_path):
    draw(tmp_path / "e", "1.png", "2.png", "3.png")
    (tmp_path / "e.csv").write_text("path,label\ne/1.png,x\ne/2.png,y\ne/3.png,\n")
    assert (
        "2 classes, 3 images"
        in write_recipe("mine", tmp_path / "e.csv", "resnet18", None, context).message
    )


def test_nothing_is_overwritten_and_nothing_is_guessed_from_nothing(context, tmp_path):
    (tmp_path / "d.yaml").touch()
    with pytest.raises(UsageError, match="exists already"):
        write_recipe("d", tmp_path, "resnet18", None, context)
    with pytest.raises(UsageError, match="no folder or table of images"):
        write_recipe("e", None, "resnet18", None, context)
    with pytest.raises(DataError, match="no such images"):
        write_recipe("e", tmp_path / "none", "resnet18", None, context)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        write_recipe("e", tmp_path / "empty", "resnet18", None, context)
    with pytest.raises(UnknownNameError):
        write_recipe("e", tmp_path / "empty", "reznet", None, context)
    assert not (tmp_path / "e.yaml").exists()
