"""What a person may write into a parameter file or behind --set by mistake or by malice: one sentence, at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from svite.params.recipe import read
from svite.params.run import Training
from svite.params.study import load
from svite.params.yaml import DEEPEST, yaml_value
from svite.pipeline.copies import NotebookError
from svite.pipeline.notebooks import parameter

ROOT = Path(__file__).parent.parent
DIGITS, FOLDER = ROOT / "recipes/digits.yaml", ROOT / "recipes/image_folder.yaml"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))  # fmt: skip  # noqa: B905, E501
DEEP = {
    "a list in a list": "- " * 50_000,
    "brackets": "[" * 50_000,
    "braces": "{a: " * 50_000,
    "questions": "? " * 50_000,
    "indented": "".join(f"{' ' * depth}a:\n" for depth in range(2_000)),
}


def said(text: str, *changes: str, params: Path | None = None) -> str:
    """What is said of a file of this text, or of a recipe with these changes."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(params, Training, changes) if params else yaml_value(text, "x.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(caught.value).endswith(".")
    return str(caught.value)


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_what_is_nested_too_deep_does_not_end_the_interpreter(text, tmp_path):
    """In a process of its own, for the parser would overflow its stack."""
    (tmp_path / "params.yaml").write_text(text)
    code = "from svite.params import recipe, run; recipe.read('params.yaml', run.Training)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, "the interpreter was killed"
    assert done.stderr.splitlines()[-1].startswith("ValueError: params.yaml is not valid YAML: "), done.stderr[-500:]


def test_every_door_has_the_same_guard(tmp_path):
    deep = "[" * 50_000
    assert f"nested more than {DEEPEST} deep" in said("", f"seed={deep}", params=DIGITS)
    assert f"nested more than {DEEPEST} deep" in said("", f"recipe.views.scale={deep}", params=DIGITS)
    with pytest.raises(NotebookError, match=f"nested more than {DEEPEST} deep"):
        parameter(f"density={deep}")
    (tmp_path / "params.yaml").write_text(f"data: {deep}")
    with pytest.raises(ValueError, match=f"nested more than {DEEPEST} deep"):
        load(tmp_path / "params.yaml")


WRONG = [
    (BOMB, "it stands for more than 100000 values, or for itself"),
    ("a: &x [1, *x]", "or for itself"),
    ("a: &x {b: {c: *x}}", "or for itself"),
    (f"a: [{'1, ' * 100_001}]", "more than 100000 values"),
    ("a: 1\nb: 2\na: 3\n", 'found duplicate key "a" with value "3" (original value: "1") in line 3'),
    ("recipe:\n  lr: 1\n  lr: 2\n", 'found duplicate key "lr"'),
    ("a: " + "9" * 6_000, "Exceeds the limit"),
    ("a: *nobody", "found undefined alias in line 1"),
    ("a: 2020-99-99", "month must be in 1..12"),
    ("a: !!int many", "invalid literal"),
    ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    ("a: \0", "unacceptable character"),
    ("a: !!bool foo", "x.yaml is not valid YAML: "),
    ("a: !!int ''", "x.yaml is not valid YAML: "),
    ("a: 1\n---\nb: 2", "found another document"),
    (b"a: \xff\xfe", "x.yaml is not valid YAML: "),
]


@pytest.mark.parametrize(("text", "reason"), WRONG, ids=range(len(WRONG)))
def test_yaml_that_is_none_is_one_sentence(text, reason):
    assert reason in said(text)


CHANGES = [
    (DIGITS, "recipe.epoch=3", "recipe.epoch: is not a known key (got 3); the nearest is epochs."),
    (DIGITS, "recpie.lr=3", "recpie: is not a known key (got {'lr': 3}); the nearest is recipe."),
    (DIGITS, "recipe.views.flipp=3", "recipe.views.flipp: is not a known key (got 3); the nearest is flip."),
    (DIGITS, "recipe.mixing.mixap=3", "recipe.mixing.mixap: is not a known key (got 3); the nearest is mixup."),
    (FOLDER, "data.rooot=x", "data.rooot: is not a known key (got 'x'); the nearest is root."),
    (FOLDER, "data.workers=-1", "data.workers: Input should be greater than or equal to 0 (got -1)."),
    (
        FOLDER,
        "data=my-images",
        "'data=my-images' puts a word in the place of 'data', which has the parts root, train, ",
    ),
    (DIGITS, "model=resnet18", "set one of these, model.name=resnet18 say."),
    (DIGITS, "method=sivte", "there is no method 'sivte'; the nearest are svite, s2vite (got 'sivte')."),
    (DIGITS, "method=DENSE", "there is no method 'DENSE'; the nearest is dense (got 'DENSE')."),
    (DIGITS, "method=zzz", "there is no method 'zzz'; the methods are dense, acdc, block, "),
    (DIGITS, "seed=0x" + "f" * 3_000, "seed: Input should be less than 4294967296 (got "),
    (
        DIGITS,
        "seed=0x" + "f" * 6_000,
        "seed: Input should be less than 4294967296 (got a number of thousands of digits).",
    ),
    (DIGITS, "recipe.epochs=" + "9" * 3_000, "recipe.epochs: Input should be less than 2147483648 (got "),
    (DIGITS, "recipe.lr=.nan", "recipe.lr: Input should be a finite number (got nan)."),
    (DIGITS, "model.drop_rate=.nan", "model: drop_rate should be a finite number"),
    (DIGITS, 'start="a\\0b"', "start: should be printable, as every path is (got 'a\\x00b')."),
    (DIGITS, 'data="a\\0b"', "data: should be printable, as every path is (got 'a\\x00b')."),
    (FOLDER, 'data.root="a\\nb"', "data.root: should be printable, as every path is (got 'a\\nb')."),
    (DIGITS, "strides=3", "strides: is not a known key (got 3); the keys are method, options, density, "),
    (DIGITS, "Images.root=3", "Images: is not a known key (got {'root': 3}); the keys are method, options, density, "),
    (DIGITS, "data=3", "data: Input should be a valid string (got 3)."),
    (DIGITS, "=3", " is not a known key"),
    (DIGITS, "", "'' sets nothing; it should read key=value"),
]


@pytest.mark.parametrize(("params", "change", "sentence"), CHANGES, ids=[change[:24] for _, change, _ in CHANGES])
def test_a_wrong_change_is_one_sentence(params, change, sentence):
    assert sentence in said("", change, params=params)


def test_names_for_what_is_written_once_still_work(tmp_path):
    text = DIGITS.read_text().replace("recipe:\n", "recipe: &shared\n") + "\n"
    copy = tmp_path / "copy.yaml"
    copy.write_text(text.replace("model:\n", "model: &model\n"))
    assert read(copy, Training) == read(DIGITS, Training)
    assert yaml_value("a: &x {b: 1}\nc: {<<: *x, d: 2}", "x") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text("abc é'\"", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(plain)
def test_what_is_no_attack_is_read_as_it_was(value):
    text = json.dumps(value, ensure_ascii=False)
    assert yaml_value(text, "x") == yaml_value(text, "x", pure=True) == YAML(typ="safe").load(text) == value
