"""params.yaml: what it means, and one sentence for what is wrong with it."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

import svite.study
from svite.params import options
from svite.params.recipe import read
from svite.params.run import METHODS, Run, Training
from svite.params.study import Setting, Study, load

ROOT = Path(__file__).parent.parent
PARAMS = ROOT / "params.yaml"


def written(tmp_path: Path, path: str = "", value: object = None) -> Path:
    """A copy of params.yaml with one value changed, `settings.2.method` say."""
    values = YAML(typ="safe").load(PARAMS)
    inner = values
    *outer, last = path.split(".") if path else [""]
    for name in outer:
        inner = inner[int(name) if name.isdecimal() else name]
    if path:
        inner[last] = value
    copy = tmp_path / "params.yaml"
    YAML().dump(values, copy)
    return copy


KEYS = "data, model, recipe, seeds, densities, settings, reference, rival"
WRONG = [
    ("recipe.epoch", 3, "recipe.epoch: is not a known key (got 3); the nearest is epochs."),
    ("colour", "red", f"colour: is not a known key (got 'red'); the keys are {KEYS}."),
    ("settings.2.method", "sivte", "settings.2.method: there is no method 'sivte'; the nearest are svite, s2vite"),
    ("settings.2.fractoin", 0.3, "settings: SViTE: options: svite has no option 'fractoin'; the nearest"),
    ("settings.2.paper", 1, "settings: SViTE: options: paper should be true or false, not 1."),
    ("settings.2.pool", "even", "settings: SViTE: options: there is no pool 'even'; the pools are"),
    ("settings.2.seed", 1, "settings: SViTE: options: seed is the run's own; set seed"),
    ("settings.2.density", 0.3, "settings.2: SViTE: a setting has a list of densities; write `densities: [0.3]`, say"),
    ("settings.0.densities", [0.3], "settings.0: Dense: a dense model has no densities and no start; leave them out"),
    ("settings.0.poll", "erk", "settings.0: Dense: there is no key 'poll'; the keys are label"),
    (
        "settings.2.recipe",
        {"epoch": 3},
        "settings: SViTE: recipe: epoch: is not a known key (got 3); the nearest is epochs.",
    ),
    ("settings.2.label", "SET", "settings: several settings are called 'SET'; give each a label of its own."),
    (
        "settings.3.method",
        "svite",
        "settings: several runs would have the files of 'svite-0.6-0'; give each a name of its own.",
    ),
    (
        "settings.5.start",
        "Half budget dense",
        "settings: OMP starts from 'Half budget dense', which is none; the nearest",
    ),
    ("settings.5.start", "SViTE", "settings: OMP starts from 'SViTE', which is none; the dense settings are Dense"),
    (
        "settings.5.model",
        {"depth": 2},
        "settings: OMP starts from Half-budget dense, which has no model of its kind with seed 0.",
    ),
    (
        "settings.5.seeds",
        [7],
        "settings: OMP starts from Half-budget dense, which has no model of its kind with seed 7.",
    ),
    (
        "settings.1.share",
        0.05,
        "settings: Half-budget dense is left with none of 13 epochs; give it more, or a share.",
    ),
    ("settings.1.share", 1.0, "settings: OMP is left with none of 13 epochs; give it more, or a share."),
    ("settings.0.group", "start", "settings: 0 are dense and of the group weights; one should be, the baseline."),
    ("settings.1.group", "weights", "settings: 2 are dense and of the group weights; one should be, the baseline."),
    ("settings.2.group", "weight", "settings.2.group: Input should be 'weights', 'structures', 'attention' or 'start'"),
    ("settings.2.name", "../x", "settings.2.name: "),
    ("settings.2.label", "a | b", "settings.2.label: String should match pattern"),
    ("reference", "SVITE", "reference: no setting of single weights is called 'SVITE'; the labels are SViTE, SET"),
    ("rival", "S2ViTE", "rival: no setting of single weights is called 'S2ViTE'; the labels are SViTE, SET"),
    ("densities", [0.5, 0.0], "densities.1: Input should be greater than 0 (got 0.0)."),
    ("densities", [1.5], "densities.0: Input should be less than or equal to 1 (got 1.5)."),
    ("densities", [1.0], "densities: a density of 1 is the dense baseline"),
    ("recipe.epochs", "many", "recipe.epochs: Input should be a valid integer"),
    ("recipe.epochs", 0, "recipe.epochs: Input should be greater than 0 (got 0)."),
    ("recipe.lr", [1, 2], "recipe.lr: Input should be a valid number (got [1, 2])."),
    ("recipe.lr", float("inf"), "recipe.lr: Input should be a finite number (got inf)."),
    ("recipe.warmup", 1.5, "recipe.warmup: Input should be less than or equal to 1 (got 1.5)."),
    ("seeds", 3, "seeds: Input should be a valid tuple (got 3)."),
    ("seeds", [], "seeds: Tuple should have at least 1 item"),
    ("seeds", [0, 0], "settings: several runs would have the files of 'dense-0'; give each a name of its own."),
    ("model", "vit_tiny", "model: Input should be a valid dictionary"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), WRONG)
def test_a_wrong_value_is_one_sentence_that_says_where(path, value, sentence, tmp_path):
    copy = written(tmp_path, path, value)
    with pytest.raises(ValueError, match=re.escape(f"{copy}: {sentence}")) as caught:
        load(copy)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert not str(caught.value).endswith("..")


@pytest.mark.parametrize(("change", "said"), [
    ("seed", "'seed' sets nothing; it should read key=value"),
    ("recipe.lr.x=1", "'recipe.lr.x=1' sets a part of 'lr', which is 0.01 and has no parts."),
    ("data.root=x", "'data.root=x' sets a part of 'data', which is 'data' and has no parts."),
])  # fmt: skip
def test_a_change_that_can_not_be_made_is_one_sentence(change, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        read(ROOT / "recipes/digits.yaml", Training, [change])


def test_a_missing_key_is_one_sentence(tmp_path):
    values = YAML(typ="safe").load(PARAMS)
    del values["seeds"]
    YAML().dump(values, tmp_path / "params.yaml")
    with pytest.raises(ValueError, match=r"seeds: Field required"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "said"), [("a: [1", "is not valid YAML"), ("- 1", "holds no mapping"), ("", "no mapping")]
)
def test_a_file_that_is_no_mapping_is_one_sentence(text, said, tmp_path):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        load(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def a_study(*settings: dict[str, Any], **values: Any) -> Study:
    """A small study of these settings, beside a dense one."""
    dense = {"label": "Dense", "method": "dense"}
    usual = {"data": "data", "model": {"name": "vit_tiny_patch16_224"}, "recipe": {"epochs": 13}, "seeds": [0, 1]}
    return Study.of(**(usual | {"densities": [0.5, 0.1], "settings": [dense, *settings]} | values))


def test_the_committed_study_is_what_it_says_it_is():
    study = load(PARAMS)
    settings = [
        (setting, setting.seeds or study.seeds, setting.densities or study.densities) for setting in study.settings
    ]
    counts = [len(seeds) * (1 if one.method == "dense" else len(densities)) for one, seeds, densities in settings]
    assert len(study.runs) == len({planned.key for planned in study.runs}) == sum(counts)
    assert [planned.key for planned in study.among("attention")] == ["large-dense-0", "large-svite-0.6-0"]
    assert {planned.run.recipe.epochs for planned in study.among("weights", "structures") if not planned.start} == {13}
    assert {planned.run.recipe.epochs for planned in study.among("start")} == {6}
    assert {planned.run.recipe.epochs for planned in study.runs if planned.start} == {7}
    assert {planned.start for planned in study.runs if planned.label == "OMP"} == {"half-0", "half-1", "half-2"}
    assert all(planned.run.model == study.model for planned in study.among("weights", "structures", "start"))


@pytest.mark.parametrize("path", sorted(ROOT.glob("studies/*/params.yaml")), ids=lambda path: path.parent.name)
def test_the_other_studies_are_studies(path):
    assert load(path).runs


def test_settings_of_one_method_differ_by_their_options():
    study = a_study(
        {"label": "SViTE", "method": "svite"},
        {"label": "SViTE uniform", "method": "svite", "pool": "uniform", "densities": [0.1]},
        {
            "label": "Brief",
            "method": "svite",
            "name": "brief",
            "densities": [0.1],
            "seeds": [3],
            "recipe": {"epochs": 2},
        },
    )
    runs = {planned.key: planned for planned in study.runs}
    assert [*runs] == [
        *("dense-0", "dense-1", "svite-0.5-0", "svite-0.5-1", "svite-0.1-0", "svite-0.1-1"),
        *("svite-0.1-0-pool-uniform", "svite-0.1-1-pool-uniform", "brief-0.1-3"),
    ]
    assert runs["svite-0.1-1-pool-uniform"].run.options == {"pool": "uniform"}
    assert runs["brief-0.1-3"].run.recipe.epochs == 2
    assert runs["brief-0.1-3"].label == "Brief"
    assert study.baseline == "Dense"


def test_a_setting_changes_a_part_of_the_recipe_and_of_the_model_only():
    recipe = {"epochs": 13, "lr": 0.5, "views": {"flip": 0.0, "jitter": 0.1}}
    changed = {"label": "A", "method": "set", "recipe": {"views": {"jitter": 0.2}}, "model": {"depth": 2}}
    study = a_study(changed, recipe=recipe)
    run = study.runs[-1].run
    assert (run.recipe.lr, run.recipe.views.flip, run.recipe.views.jitter) == (0.5, 0.0, 0.2)
    assert run.model.arguments == {"depth": 2}
    assert study.runs[0].run.recipe.views.jitter == 0.1


@given(st.integers(2, 60), st.sampled_from([0.25, 0.5, 0.75]))
def test_a_start_and_what_follows_share_the_epochs(epochs, share):
    settings = (
        {"label": "Start", "method": "dense", "name": "first", "group": "start", "share": share},
        {"label": "OMP", "method": "omp", "start": "Start"},
    )
    if int(share * epochs) == 0:
        with pytest.raises(ValueError, match="Start is left with none of"):
            a_study(*settings, recipe={"epochs": epochs})
        return
    study = a_study(*settings, recipe={"epochs": epochs})
    spent = {planned.key: planned.run.recipe.epochs for planned in study.runs}
    assert spent["first-0"] == int(share * epochs)
    assert spent["first-0"] + spent["omp-0.1-0"] == spent["dense-0"] == epochs


def test_a_share_of_its_own_goes_before_what_a_start_left():
    """As papers have it that take the dense model for granted."""
    study = a_study({"label": "OMP", "method": "omp", "start": "Dense", "share": 1.0})
    assert study.runs[-1].run.recipe.epochs == 13
    assert study.runs[-1].start == "dense-1"


def test_no_method_has_an_argument_that_a_setting_takes_for_its_own():
    taken = {name for method in METHODS for name in options.arguments(method)} - {"model"}
    assert not taken & Setting.model_fields.keys()


def test_the_methods_of_a_study_are_the_librarys_and_ones_own():
    from svite import methods

    assert {*METHODS} >= {*methods.__all__}


def test_a_run_is_a_value():
    model = load(PARAMS).model
    run = Run(method="svite", density=0.3, seed=1, model=model)
    assert run.key == "svite-0.3-1"
    assert Run.model_validate_json(run.model_dump_json()) == run
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 2


def test_a_run_of_a_notebook_is_refused_in_one_sentence_too():
    with pytest.raises(ValueError, match=r"^run: recipe\.lr: .*\.$") as caught:
        Run.of(method="svite", model={"name": "vit_tiny_patch16_224"}, recipe={"lr": -1})
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("thing", [Run, Study, Training, load])
def test_the_old_home_of_runs_still_works(thing):
    name, home = thing.__name__, re.escape(thing.__module__)
    with pytest.warns(DeprecationWarning, match=rf"^svite\.study\.{name} is {home}\.{name} now\.$"):
        assert getattr(svite.study, name) is thing
