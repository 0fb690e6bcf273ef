"""What a parameter file may say to a method: its own arguments, checked before anything runs, and given to it."""

import inspect
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import a_run

from svite import methods
from svite.params import options
from svite.params.recipe import read
from svite.params.run import Run, Training, key
from svite.sparsity import layers, pool, schedule
from svite.tokens import places
from svite.train import builders
from svite.train import told as told_of
from svite.train.models import build
from svite.train.told import unchanging, unused
from svite.vit import structure

MODEL = {"name": "vit_tiny_patch16_224"}
OTHER = {  # a value of each argument that is not its default
    "initial": 0.75,
    "density": 0.25, "heads": 0.5, "neurons": 0.5, "interval": 3, "fraction": 0.25, "until": 0.5, "batches": 2,
    "begin": 0.2, "paper": True, "cut": "neurons", "pool": "uniform", "layers": ["blocks.*.mlp.*"], "m": 8, "side": 8,
    "strength": 0.1, "rounds": 2, "at": [0], "salient": 0.5,
    "schedule": "linear", "ramp": "linear",
}  # fmt: skip


def run_of(method: str, given: dict[str, Any], density: float = 0.7) -> Run:
    return a_run(method, density).model_copy(update={"options": given})


def every() -> list[tuple[str, str]]:
    named = [(method, name) for method in methods.__all__ for name in options.arguments(method)]
    return [(method, name) for method, name in named if name not in options.OF_THE_RUN]


def test_arguments_are_those_of_the_signature():
    for method in methods.__all__:
        taken = inspect.signature(getattr(methods, method)).parameters
        assert [*options.arguments(method)] == [*taken]
        needed = [name for name in taken if name in options.SHARES and taken[name].default is inspect.Parameter.empty]
        assert sorted(options.shares(method)) == sorted(needed)


def received(run: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the method of a run is called with."""
    module, found = inspect.getmodule(getattr(methods, run.method)), {}
    monkeypatch.setattr(module, run.method, lambda model, **given: found.update(given))
    builders.sparsify(run, torch.nn.Identity(), 10)
    return found


@pytest.mark.parametrize(("method", "name"), every())
def test_every_argument_can_be_said_in_a_parameter_file(method, name, monkeypatch):
    if options.shares(method) == (name,):
        assert received(a_run(method, density=0.7), monkeypatch)[name] == 0.7
        with pytest.raises(ValueError, match=rf"options: {name} is the run's own; set density"):
            Run.of(method=method, options={name: 0.7}, model=MODEL)
        return
    run, value = run_of(method, {name: OTHER[name]}), OTHER[name]
    assert received(run, monkeypatch)[name] == options.values({name: value})[name]


def test_functions_go_by_their_names():
    for name in ("heads", "neurons", "structures"):
        assert options.values({"cut": name}) == {"cut": getattr(structure, name)}
    assert options.values({"cut": "elements"}) == {"cut": layers.elements}
    assert options.values({"pool": "global"}) == {"pool": pool.global_allocation}
    for name in ("uniform", "with_branches", "erk"):
        assert options.values({"pool": name}) == {"pool": getattr(pool, name)}
    for name in ("cosine", "constant"):
        assert options.values({"schedule": name}) == {"schedule": getattr(schedule, name)}
    assert options.values({"schedule": "linear"}) == {"schedule": schedule.straight}
    for name in ("cubic", "linear"):
        assert options.values({"ramp": name}) == {"ramp": getattr(schedule, name)}
    assert options.values({"at": "quarters"}) == {"at": places.quarters}
    assert options.values({"at": [1, 2]}) == {"at": [1, 2]}
    assert options.values({"at": 0}) == {"at": 0}


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("svite", {"fracton": 0.3}, "svite has no option 'fracton'; the nearest is fraction"),
        ("omp", {"paper": True}, "omp has no option 'paper'; the options are cut, pool, layers"),
        ("svite", {"fraction": "much"}, "fraction should be a number, not 'much'"),
        ("svite", {"fraction": 10**400}, "fraction should be a number, not 1000.*0000"),
        ("svite", {"interval": 10**400}, "interval should be a whole number, not 1000.*0000"),
        ("svite", {"fraction": True}, "fraction should be a number, not True"),
        ("svite", {"interval": 2.5}, "interval should be a whole number, not 2.5"),
        ("svite", {"paper": 1}, "paper should be true or false, not 1"),
        ("svite", {"pool": "unifrom"}, "there is no pool 'unifrom'; the nearest is uniform"),
        ("svite", {"cut": "rows"}, "there is no cut 'rows'; the cuts are elements, heads, neurons, structures"),
        ("svite", {"cut": 3}, "there is no cut 3; the cuts are elements, heads, neurons, structures"),
        ("svite", {"layers": "blocks.*"}, r"layers should be a list of words, .* say or null, not 'blocks\.\*'"),
        ("sviteplus", {"at": [1.5]}, r"at should be a whole number or a list .* or quarters, not \[1.5\]"),
        ("sviteplus", {"at": "thirds"}, "at should be a whole number or a list of .* or quarters, not 'thirds'"),
        ("sviteplus", {"at": ["quarters"]}, r"at should be a whole number or .* or quarters, not \['quarters'\]"),
        ("rigl", {"schedule": "cosinus"}, "there is no schedule 'cosinus'; the nearest is cosine"),
        ("set", {"schedule": 3}, "there is no schedule 3; the schedules are cosine, linear, constant"),
        ("gmp", {"ramp": "root"}, "there is no ramp 'root'; the ramps are cubic, linear"),
        ("gmp", {"schedule": "cosine"}, "gmp has no option 'schedule'; .*"),
        ("svite", {"fraction": "cosine"}, "fraction should be a number, not 'cosine'"),
        ("svite", {"seed": 1}, "seed is the run's own; set seed"),
        ("svite", {"steps": 1}, r"steps is the run's own; set recipe\.epochs"),
        ("dense", {"pool": "erk"}, "dense has none"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_sentence(method, given, said):
    with pytest.raises(ValueError, match=rf"^run: options: {said}\.$"):
        Run.of(method=method, options=given, model=MODEL)


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.floats(), st.text(), st.lists(st.integers()))))
def test_anything_else_is_one_sentence_too(given):
    with pytest.raises(ValueError, match=r"^run: options: .*\.$") if given else nullcontext():
        assert Run.of(method="svite", options=given, model=MODEL).options == {}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of methods of one's own, in the place of svite's."""
    monkeypatch.setattr(options, "FOLDER", tmp_path)
    options.arguments.cache_clear()
    options.shares.cache_clear()
    yield tmp_path
    options.arguments.cache_clear()
    options.shares.cache_clear()


@pytest.mark.parametrize(
    ("text", "said"), [("def mine(:", "line 1, is no Python"), ("x = 1", "should define a function `mine`")]
)
def test_a_method_without_a_function_is_one_sentence(own, text, said):
    (own / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.py.* {said}"):
        options.arguments("mine")


def test_a_method_of_ones_own_needs_no_annotations(own):
    (own / "mine.py").write_text("def mine(model, density, steps, *, speed=1, seed=0): ...")
    assert options.shares("mine") == ("density",)
    options.refuse_wrong("mine", {"speed": "any"})


def test_a_method_of_ones_own_may_be_written_otherwise(own):
    text = "def other(model, *, density, steps, rate: 'float | None' = None, pool=erk, word: str = 'a'): ..."
    (own / "other.py").write_text(text)
    assert options.shares("other") == ("density",)
    options.refuse_wrong("other", {"rate": None, "pool": "erk", "word": "b"})
    for wrong, said in (
        ({"rate": "z"}, "rate should be a number or null, not 'z'"),
        ({"word": 3}, "word should be a word, not 3"),
        ({"pool": "ark"}, "there is no pool 'ark'; the nearest is erk"),
    ):
        with pytest.raises(ValueError, match=said):
            options.refuse_wrong("other", wrong)


# Runs


def test_a_command_line_sets_options(tmp_path):
    params = tmp_path / "run.yaml"
    params.write_text("method: svite\ndensity: 0.3\nmodel: {name: vit_tiny_patch16_224}\ndata: data\n")
    read_so = read(params, Training, ["options.fraction=0.3", "options.pool=uniform", "options.layers=['blocks.*']"])
    assert read_so.options == {"fraction": 0.3, "pool": "uniform", "layers": ["blocks.*"]}
    assert read_so.run.options == read_so.options
    for change, made in (("options.schedule=cosine", schedule.cosine), ("options.schedule=linear", schedule.straight)):
        said = read(params, Training, ["method=set", change]).run.options
        assert options.values(said) == {"schedule": made}
    assert read(params, Training, ["method=sviteplus", "options.at=quarters"]).run.options == {"at": "quarters"}
    with pytest.raises(ValueError, match=r"run\.yaml: options: svite has no option 'pol'; the nearest is pool"):
        read(params, Training, ["options.pol=uniform"])


def test_runs_of_other_options_have_other_files():
    def named(**given: Any) -> str:
        return key("svite", 0.3, 0, given)

    assert named() == "svite-0.3-0"
    assert named(paper=True, fraction=0.3) == named(fraction=0.3, paper=True) == "svite-0.3-0-fraction-0.3-paper-true"
    lists = [["a", "b"], ["a,b"], ["a*"], ["a?"], ["A*"], ["none"], ["null"], [], None]
    assert len({named(layers=each) for each in lists}) == len(lists)
    assert len({named(), named(fraction=0.1), named(fraction=0.2), named(pool="erk"), named(until=0.2)}) == 5
    long = {"at": list(range(100))}
    with pytest.raises(ValueError, match="give the run a name"):
        Run.of(method="sviteplus", options=long, model=MODEL)
    assert Run.of(method="sviteplus", options=long, model=MODEL, name="short").key == "short"


def test_a_run_is_read_as_it_was_written():
    run = Run.of(method="sviteplus", options={"at": (3, 6)}, model=MODEL)
    assert Run.model_validate_json(run.model_dump_json()) == run


FALLING = ["set", "rigl", "svite", "granet", "srigl", "nm", "block", "s2vite"]


@pytest.mark.parametrize("method", FALLING)
def test_a_schedule_by_its_name_is_that_function(method):
    def shares(given: dict[str, Any]) -> list[float]:
        run = run_of(method, given | ({"side": 4} if method == "block" else {}), density=0.5)
        sparsifier = builders.sparsify(run, build(run.model), 100)
        return [sparsifier.fraction(step) for step in range(0, 101, 5)]

    taken = inspect.signature(getattr(methods, method)).parameters
    first, end = taken["fraction"].default, int(taken["until"].default * 100)
    curves = {name: shares({"schedule": name}) for name in options.FUNCTIONS["schedule"]}
    for name, made in (("cosine", schedule.cosine), ("linear", schedule.straight), ("constant", schedule.constant)):
        assert curves[name] == [made(first, end)(step) for step in range(0, 101, 5)]
    assert shares({}) == curves["constant" if method == "set" else "cosine"]
    assert len({*map(tuple, curves.values())}) == 3


def test_a_ramp_by_its_name_is_that_function():
    def ramp(given: dict[str, Any]) -> list[float]:
        run = run_of("gmp", given)
        (rule, *_) = builders.sparsify(run, build(run.model), 100).rules
        return [rule.ramp(step) for step in range(101)]

    straight = schedule.linear(0.0, 1.0, end=80, begin=10)
    assert ramp({"ramp": "linear"}) == [straight(step) for step in range(101)]
    assert ramp({}) == ramp({"ramp": "cubic"}) != ramp({"ramp": "linear"})


def test_options_change_what_is_trained():
    run = run_of("svite", {"pool": "uniform", "layers": ["blocks.*"]}, density=0.3)
    table = builders.sparsify(run, build(run.model), 100).summary().dropna(subset="target")
    assert set(table["target"].round(6)) == {0.3}
    assert all(unit.startswith("blocks.") for unit in table["unit"])


def test_what_options_put_out_of_use_is_told(monkeypatch):
    def told(method: str, given: dict[str, Any], **more: Any) -> list[str]:
        recipe = {"interval": 7} if "interval" in given else {}
        return unused(Training(method=method, options=given, model=MODEL, recipe=recipe, data="data", **more))

    both = {"heads": 0.5, "neurons": 0.5}
    assert told("s2vite", both, density=0.7) == ["density (options say heads and neurons)"]
    assert told("s2vite", {"heads": 0.5}, density=0.7) == []
    monkeypatch.setattr(told_of, "shares", lambda method: ())
    assert told("gmp", {}, density=0.7) == ["density (gmp takes none)"]
    assert told("svite", {"interval": 3}, density=1.0) == ["recipe.interval (options say it)"]


def test_an_interval_of_the_options_is_the_one_that_counts():
    run = run_of("svite", {"interval": 1000})
    sparsifier = builders.sparsify(run, build(run.model), 20)
    said = "The topology never changes: the run has 20 steps, and options.interval is 1000."
    assert unchanging(run, sparsifier, 20) == said
