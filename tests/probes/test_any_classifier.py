"""Any scikit-learn classifier: named by its path, or given as an object; the rest is as ever."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    BaggingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import all_estimators

from featpipe.api import evaluate, report
from featpipe.cli import main
from featpipe.errors import FitError, RecipeError, ResultError, UnknownNameError, UsageError
from featpipe.evaluation.models import load_model
from featpipe.evaluation.result import Result
from featpipe.probes.any_classifier import AnyClassifier, describe
from featpipe.steps.recipe import read_recipe
from tests.evaluation.methods import context, evaluated, pair

FOREST = "sklearn.ensemble.RandomForestClassifier"
TREE = "sklearn.tree.DecisionTreeClassifier"


SCRIPT = """
import sys
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from featpipe import FeatureStore, evaluate

class Constant(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.repeat(self.classes_[0], len(X))

print(evaluate(Constant(), *map(FeatureStore, sys.argv[1:]), workspace=".").title)
"""


def test_a_class_of_the_running_script_is_a_classifier(stores, tmp_path):
    paths = [str(store.path) for store in stores]
    (tmp_path / "script.py").write_text(SCRIPT)
    call = [sys.executable, "script.py", *paths]  # it has no spec, nor has a notebook
    ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "Constant", ended.stderr


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("stores"))


def test_the_command_trains_chooses_and_saves(tmp_path, stores, capsys):
    train, test = stores
    line = f"probe {FOREST} --set n_estimators=8 --grid max_depth=1,4 --grid max_features=sqrt,null"
    line += f" --train {train.path} --test {test.path} --workspace {tmp_path} --json"
    ended = []
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            main(line.split())
        assert caught.value.code == 0
        ended.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert [one["status"] for one in ended] == ["done", "up to date"]
    result = Result.load(ended[0]["paths"][0])
    assert result.title == "RandomForestClassifier, n_estimators=8"
    assert result.settings["set"] == {"n_estimators": 8}
    split = result.splits[0]
    tried = [(row["max_depth"], row["max_features"]) for row in split["search"]]
    assert tried == [(1, "sqrt"), (1, None), (4, "sqrt"), (4, None)]
    best = max(split["search"], key=lambda row: row["accuracy"])
    assert split["chosen"]["max_depth"] == best["max_depth"]
    model = load_model(tmp_path / "data" / "models" / result.files["model"])
    forest = model.estimator[-1]
    assert (len(forest.estimators_), forest.random_state) == (8, 0)
    assert (model.estimator.predict(test.features()) == result.predictions().predicted).all()
    assert report([result], tmp_path / "page").is_file()


def test_an_object_is_the_same_method_as_its_description(tmp_path, stores):
    forest = RandomForestClassifier(n_estimators=8, n_jobs=2)
    one = evaluate(forest, *stores, grid={"max_depth": [1, 4]}, workspace=tmp_path, jobs=1)
    other = AnyClassifier(classifier=FOREST, set={"n_estimators": 8}, grid={"max_depth": [1, 4]})
    assert evaluated(other, tmp_path, *stores).key == one.key
    assert forest.n_jobs == 2


def test_estimators_within_an_estimator_are_described_and_built_again(tmp_path, stores):
    model = make_pipeline(PCA(4), BaggingClassifier(DecisionTreeClassifier(max_depth=3), 5))
    assert json.loads(json.dumps(describe(model))) == describe(model)
    result = evaluate(model, *stores, workspace=tmp_path)
    trained = load_model(tmp_path / "data" / "models" / result.files["model"]).estimator[-1]
    assert trained[0].n_components == 4
    assert [tree.max_depth for tree in trained[1].estimators_] == [3] * 5


BASE = DecisionTreeClassifier(max_depth=3)
ARGUMENTS = {  # of classifiers that cannot be made without them
    "ClassifierChain": (BASE,),
    "FixedThresholdClassifier": (BASE,),
    "MultiOutputClassifier": (BASE,),
    "OneVsOneClassifier": (BASE,),
    "OneVsRestClassifier": (BASE,),
    "OutputCodeClassifier": (BASE,),
    "SelfTrainingClassifier": (BASE,),
    "StackingClassifier": ([("tree", BASE), ("bayes", GaussianNB())],),
    "TunedThresholdClassifierCV": (BASE,),
    "VotingClassifier": ([("tree", BASE), ("bayes", GaussianNB())],),
}
REFUSED = {  # what scikit-learn says of this data or this task
    "CategoricalNB": "Negative values",
    "ClassifierChain": "ClassifierChain failed",
    "ComplementNB": "Negative values",
    "FixedThresholdClassifier": "binary",
    "LabelPropagation": "not finite",
    "LabelSpreading": "not finite",
    "MultiOutputClassifier": "y",
    "MultinomialNB": "Negative values",
    "TunedThresholdClassifierCV": "binary",
}


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*found, id=found[0]) for found in all_estimators("classifier")]
)
def test_every_classifier_of_scikit_learn_is_a_probe(name, kind, tmp_path, stores):
    step = AnyClassifier.from_mapping(
        {
            "classifier": (described := describe(kind(*ARGUMENTS.get(name, ()))))["estimator"],
            "set": described["set"],
            "scale": "length" if name == "RadiusNeighborsClassifier" else "standard",
        }
    )
    if name in REFUSED:
        with pytest.raises((FitError, ResultError), match=REFUSED[name]):
            evaluated(step, tmp_path, *stores)
    else:
        result = evaluated(step, tmp_path, *stores)
        assert result.protocol["n_test"] == len(stores[1])
        assert 0 < result.summary["accuracy"]["value"] <= 1


@pytest.mark.parametrize(
    "estimator",
    [
        GridSearchCV(SVC(), {"C": np.logspace(-1, 1, 3), "kernel": ["linear", "rbf"]}, cv=2),
        RandomForestClassifier(5, class_weight={0: 1, 1: 5, 2: 1.5}),
        GridSearchCV(
            make_pipeline(PCA(3), BASE), [{"pca": [PCA(2), None]}, {"pca__n_components": [3]}], cv=2
        ),
    ],
)
def test_parameters_may_be_mappings(tmp_path, stores, estimator):
    assert json.loads(json.dumps(describe(estimator))) == describe(estimator)
    result = evaluate(estimator, *stores, workspace=tmp_path)
    assert result.summary["accuracy"]["value"] > 0.4


@pytest.mark.parametrize(
    ("estimator", "title"),
    [
        (RandomForestClassifier(8), "RandomForestClassifier, n_estimators=8"),
        (
            GridSearchCV(SVC(), {"C": [1, 10], "kernel": ["rbf"]}, cv=3),
            "GridSearchCV, cv=3, estimator=SVC, param_grid=C/kernel",
        ),
        (make_pipeline(PCA(4), None, SVC(C=2)), "PCA, n_components=4 → SVC, C=2"),
        (SVC(class_weight={0: 1, 1: 2}), "SVC, class_weight=0: 1, 1: 2"),
        (
            VotingClassifier([("a", SVC()), ("b", BASE)]),
            "VotingClassifier, estimators=SVC, DecisionTreeClassifier, max_depth=3",
        ),
    ],
)
def test_titles_name_classes_in_words(estimator, title):
    described = describe(estimator)
    step = AnyClassifier(classifier=described["estimator"], set=described["set"])
    assert step.display_name == title


@pytest.mark.parametrize("wrong", [RandomForestClassifier, object(), 3])
def test_what_is_no_classifier_is_told_so(tmp_path, stores, wrong):
    with pytest.raises(UsageError, match="This is no method") as error:
        evaluate(wrong, *stores, workspace=tmp_path)
    assert "RandomForestClassifier()" in str(error.value)


def test_the_seed_decides_and_the_number_of_jobs_does_not(stores, tmp_path):
    train, test = stores

    def predicted(seed, jobs):
        step = AnyClassifier(classifier=FOREST, set={"n_estimators": 3}, seed=seed)
        result = evaluated(step, tmp_path / f"{seed} {jobs}", train, test, jobs)
        return result.predictions().scores.tolist()

    assert predicted(0, 1) == predicted(0, 2) != predicted(1, 1)


def test_what_decides_the_numbers_is_in_the_identity():
    plain = AnyClassifier(classifier=TREE).key({})
    assert AnyClassifier(classifier=TREE, trust=True).key({}) == plain
    for change in ({"set": {"max_depth": 2}}, {"grid": {"max_depth": [2]}}, {"scale": "none"}):
        assert AnyClassifier(classifier=TREE, **change).key({}) != plain


def test_without_scores_what_needs_them_is_left_out(tmp_path, stores):
    step = AnyClassifier(
        classifier="sklearn.ensemble.VotingClassifier",
        set={"estimators": [["a", describe(RidgeClassifier())], ["b", describe(GaussianNB())]]},
    )
    result = evaluated(step, tmp_path, *stores)
    assert any("left out" in note for note in result.notes)
    assert result.summary["metrics"]["roc_auc_macro"] is None


@pytest.mark.parametrize("classifier", [HistGradientBoostingClassifier(max_iter=3), SVC()])
def test_what_makes_all_its_trees_or_has_no_limit_has_converged(tmp_path, stores, classifier):
    result = evaluate(classifier, *stores, workspace=tmp_path)
    assert result.splits[0]["converged"]


def test_a_model_that_skops_does_not_trust_is_not_saved_and_says_why(tmp_path, stores):
    boosting = "sklearn.ensemble.HistGradientBoostingClassifier"
    places = {"train": stores[0].path, "test": stores[1].path}
    step = AnyClassifier(classifier=boosting, set={"max_iter": 2}, **places)
    first = step.run(context(tmp_path))
    result = Result.load(first.paths[0])
    assert "TreePredictor" in result.extra["not_saved"]
    assert result.extra["not_saved"] in result.notes
    assert "model" not in result.files
    assert not list((tmp_path / "data" / "models").glob("*"))
    assert step.run(context(tmp_path)).status == "up to date"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classifier": "sklearn.ensemble.RandomForrestClassifier"}, UsageError, FOREST),
        ({"classifier": "RandomForestClassifier"}, UsageError, FOREST),
        ({"classifier": "sklearn.ensemble._forest.RandomForestClassifier"}, UsageError, "public"),
        ({"classifier": "os.path.join"}, UsageError, "--trust"),
        ({"classifier": "numpy.random.RandomForestClassifier"}, UsageError, "--trust"),
        ({"classifier": "sklearn.utils.Bunch"}, UsageError, "not an estimator"),
        ({"classifier": "sklearn.preprocessing.StandardScaler"}, UsageError, r"no predict\(\)"),
        ({"classifier": "sklearn.linear_model.LinearRegression"}, UsageError, "another estimator"),
        ({"classifier": FOREST, "set": {"max_dept": 3}}, UnknownNameError, "'max_depth'"),
        ({"classifier": FOREST, "grid": {"max_dept": [3]}}, UnknownNameError, "'max_depth'"),
        ({"classifier": FOREST, "grid": {"max_depth": []}}, UsageError, "list of values"),
        ({"classifier": FOREST, "set": {"n_jobs": 3}}, UsageError, "--jobs"),
        ({"classifier": FOREST, "set": ["max_depth"]}, UsageError, "KEY=VALUE"),
        ({"classifier": "sklearn.ensemble.VotingClassifier"}, UsageError, "estimators"),
        ({"classifier": "nowhere.Thing", "trust": True}, UsageError, "pip install nowhere"),
        ({"classifier": "xgboost.XGBClassifier"}, UsageError, "add --trust"),
        ({"classifier": "json.Thing", "trust": True}, UsageError, "no class"),
        ({"classifier": "sklearn.ensemble.StackingClassifier"}, UsageError, "evaluate(Stacking"),
    ],
)
def test_bad_input_is_explained(options, error, message):
    with pytest.raises(error) as caught:
        AnyClassifier(**options)
    assert message.replace("\\", "") in str(caught.value)


def test_a_value_that_the_classifier_refuses_is_explained(tmp_path, stores):
    step = AnyClassifier(classifier=FOREST, set={"n_estimators": "many"})
    with pytest.raises(FitError, match=r"'n_estimators' parameter .* must be an int"):
        evaluated(step, tmp_path, *stores)


def test_what_cannot_be_written_down_is_refused():
    with pytest.raises(UsageError, match="cannot be stored") as caught:
        describe(SVC(kernel=max))
    assert "SVC(kernel" in str(caught.value)


def test_in_a_recipe_it_is_a_mapping_and_mistakes_have_their_line(tmp_path):
    recipe = tmp_path / "forest.yaml"
    text = "steps:\n  - step: extract\n    model: glyphnet\n    dataset: digits\n  - step: probe\n"
    text += f"    classifier: {FOREST}\n    set: {{n_estimators: 5, ccp_alpha: 1e-3}}\n"
    recipe.write_text(text + "    grid: {max_depth: [2, 4]}\n")
    (variant,) = read_recipe(recipe).steps[1].variants
    assert variant.step.set == {"n_estimators": 5, "ccp_alpha": 0.001}
    assert len(variant.step.candidates()) == 2
    recipe.write_text(text.replace("n_estimators", "n_estimator"))
    with pytest.raises(RecipeError, match="no parameter 'n_estimator'"):
        read_recipe(recipe)
