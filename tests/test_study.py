"""params.yaml: what it means, and one sentence for what is wrong with it."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import svite.study
from svite.params import study
from svite.params.recipe import read
from svite.params.study import METHODS, Run, Training, load

ROOT = Path(__file__).parent.parent
PARAMS = ROOT / "params.yaml"


def written(tmp_path: Path, path: str = "", value: object = None) -> Path:
    """A copy of params.yaml with one value changed, `grid.densities` say."""
    values = YAML(typ="safe").load(PARAMS)
    inner = values
    *outer, last = path.split(".") if path else [""]
    for name in outer:
        inner = inner[name]
    if path:
        inner[last] = value
    copy = tmp_path / "params.yaml"
    YAML().dump(values, copy)
    return copy


WRONG = [
    ("recipe.epoch", 3, "recipe.epoch: is not a known key (got 3); the nearest is epochs."),
    ("colour", "red", "colour: is not a known key (got 'red'); the keys are data, model, recipe, grid, pair."),
    (
        "grid.scratch",
        ["svite", "sivte"],
        "grid.scratch: there is no method 'sivte'; the nearest are svite, s2vite (got ['svite', 'sivte']).",
    ),
    ("grid.densities", [0.5, 0.0], "grid.densities.1: Input should be greater than 0 (got 0.0)."),
    ("grid.densities", [1.5], "grid.densities.0: Input should be less than or equal to 1 (got 1.5)."),
    ("grid.densities", [1.0], "grid.densities: a density of 1 is the dense baseline"),
    ("pair.density", -1, "pair.density: Input should be greater than 0 (got -1)."),
    ("recipe.epochs", "many", "recipe.epochs: Input should be a valid integer"),
    ("recipe.epochs", 0, "recipe.epochs: Input should be greater than 0 (got 0)."),
    ("recipe.lr", [1, 2], "recipe.lr: Input should be a valid number (got [1, 2])."),
    ("recipe.lr", float("inf"), "recipe.lr: Input should be a finite number (got inf)."),
    ("recipe.warmup", 1.5, "recipe.warmup: Input should be less than or equal to 1 (got 1.5)."),
    ("grid.seeds", 3, "grid.seeds: Input should be a valid tuple (got 3)."),
    ("model", "vit_tiny", "model: Input should be a valid dictionary"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), WRONG)
def test_a_wrong_value_is_one_sentence_that_says_where(path, value, sentence, tmp_path):
    copy = written(tmp_path, path, value)
    with pytest.raises(ValueError, match=re.escape(f"{copy}: {sentence}")) as caught:
        load(copy)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


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
    del values["grid"]["seeds"]
    YAML().dump(values, tmp_path / "params.yaml")
    with pytest.raises(ValueError, match=r"grid\.seeds: Field required"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "said"), [("a: [1", "is not valid YAML"), ("- 1", "holds no mapping"), ("", "no mapping")]
)
def test_a_file_that_is_no_mapping_is_one_sentence(text, said, tmp_path):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        load(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_the_committed_study_is_the_grid_that_it_says_it_is():
    study = load(PARAMS)
    runs = study.grid.runs(study.model, study.recipe)
    grid = study.grid
    settings = len(grid.methods) * len(grid.densities) + len(grid.structured) * len(grid.kept)
    assert len(runs) == len(grid.seeds) * (1 + settings)
    assert len({run.key for run in runs}) == len(runs)
    assert {run.method for run in runs} == {"dense", *grid.methods, *grid.structured}
    assert all(run.recipe == study.recipe and run.model == study.model for run in runs)
    assert [run.key for run in study.pair.runs] == ["pair-dense", "pair-svite"]


def test_the_methods_of_a_study_are_the_librarys():
    from svite import methods

    assert list(METHODS) == methods.__all__


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


@pytest.mark.parametrize("name", ["Run", "Study", "Training", "load"])
def test_the_old_home_of_runs_still_works(name):
    with pytest.warns(DeprecationWarning, match=rf"^svite\.study\.{name} is svite\.params\.study\.{name} now\.$"):
        assert getattr(svite.study, name) is getattr(study, name)
