"""Arguments that make no sense: every method refuses each in one sentence, and leaves the model as it was."""

import inspect

import pytest
import torch
from tiny import backward, needed, same, vit, weights_of
from torch import nn

from svite import methods
from svite.sparsity.layers import units
from svite.sparsity.pool import uniform
from svite.sparsity.rule import DropGrow, Prune
from svite.sparsity.schedule import constant, every
from svite.sparsity.score import magnitude, random
from svite.sparsity.sparsifier import Sparsifier
from svite.tokens import quarters

NAN = float("nan")
NO_NUMBER = [NAN, "0.5", True, None, float("inf"), -0.1]
NO_COUNT = [0, -1, 2.5, 1.0, NAN, "4", True, None]
NOTHING_KEPT, NO_SHARE = [*NO_NUMBER, 0, 0.0, 1.01], [*NO_NUMBER, 1.01, 2.0]
BAD = {
    **dict.fromkeys(("density", "initial", "keep", "heads", "neurons"), NOTHING_KEPT),
    **dict.fromkeys(("fraction", "begin", "until", "salient"), NO_SHARE),
    **dict.fromkeys(("steps", "interval", "batches", "rounds", "side", "m"), NO_COUNT),
    "strength": NO_NUMBER,
    "seed": [0.5, NAN, "1", None, True],
    "paper": ["no", 1, None],
    "layers": ["head", 3, [1], [None]],
    "at": ["3", 0.5, True, None, (0, NAN), (0, "1")],
    "cut": [None, "heads"],
    "pool": [None, "erk", 0.5],
    "schedule": [None, "cosine", 0.5],
    "ramp": [None, "cubic", 0.5],
    "model": [None, "deit", {}],
}


def cases() -> list[tuple[str, str, object]]:
    return [
        (method, name, value)
        for method in methods.__all__
        for name in inspect.signature(getattr(methods, method)).parameters
        for value in BAD[name]  # a parameter that is new has to say here what it must not be
    ]


def state(model: nn.Module) -> tuple:
    """All that a method could leave behind: modules, hooks, and who is trained."""
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    return repr(model), hooks, [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()]


def refused(method: str, complaint: str, **arguments: object) -> None:
    """One sentence that matches, and a model that is bit for bit what it was."""
    model = vit()
    backward(model)
    before, weights, drawn = state(model), weights_of(model), torch.get_rng_state()
    with pytest.raises(ValueError, match=complaint) as error:
        getattr(methods, method)(**{"model": model, **needed(method), **arguments})
    assert "\n" not in str(error.value)
    assert state(model) == before
    assert same(weights_of(model), weights)
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(("method", "name", "value"), cases())
def test_an_argument_that_makes_no_sense_is_named_and_changes_nothing(method, name, value):
    refused(method, rf"^{name} is .*; it must ", **{name: value})


LATER = {  # arguments that make no sense together, or for this model
    "gmp": ({"begin": 0.9}, "begin is 0.9, after `until`"),
    "granet": ({"initial": 0.4}, r"^initial is 0\.4, below the density of 0\.5;"),
    "acdc": ({"begin": 0.9}, "begin is 0.9, after `until`"),
    "nm": ({"density": 0.3}, "not a whole number of every 4"),
    "l1": ({"until": 1.0}, "`until` is 1.0 of 24 steps"),
    "layer": ({"density": 0.1}, "leaves none of 2 members"),
    "vtp": ({"density": 0.001}, "leaves nothing alive"),
    "group": ({"density": 0.1}, "leaves nothing alive"),
    "isomorphic": ({"density": 0.1}, "leaves nothing alive"),
    "sviteplus": ({"at": 7}, "block 7; the model has blocks 0 to 0"),
    "rigl": ({"density": 0.0001}, "leaves nothing alive"),
    "set": ({"layers": ["tail"]}, "No prunable layer is called tail"),
    "block": ({"side": 1000}, "divides into squares of 1000"),
    "svite": ({"paper": True, "schedule": constant}, r"^paper=True has a schedule of its own, .*; leave `schedule`"),
    "srigl": ({"schedule": lambda fraction, end: lambda step: 2.0}, r"^fraction is 2\.0; it must "),
}


@pytest.mark.parametrize(("method", "arguments", "complaint"), [(m, *said) for m, said in LATER.items()], ids=LATER)
def test_what_does_not_go_together_changes_nothing_either(method, arguments, complaint):
    refused(method, complaint, **arguments)


def test_a_density_too_low_for_a_layer_leaves_no_selector_behind():
    refused("sviteplus", "leaves nothing alive", density=1e-4)
    refused("sviteplus", "would leave none of the 9", keep=0.01)


def test_places_of_a_depth_that_a_model_does_not_have_leave_nothing_behind():
    refused("sviteplus", r"^A model of 1 blocks has no quarters", at=quarters)
    refused("sviteplus", r"^at is \[0\.5\]; it must ", at=lambda depth: [depth / 2])


@pytest.mark.parametrize("fraction", [2.0, -0.5, NAN])
def test_a_rule_of_ones_own_holds_its_density_or_is_refused(fraction):
    with pytest.raises(ValueError, match=r"^fraction is"):
        DropGrow(magnitude, random, constant(fraction))
    late = DropGrow(magnitude, random, lambda step: fraction if step else 0.5)
    sparsifier = Sparsifier(model := vit(), uniform(units(model), 0.5), late, every(1, until=5))
    backward(model)
    sparsifier.step = 1
    with pytest.raises(ValueError, match=r"^fraction is"):
        sparsifier.before_step(torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    "rule", [Prune, lambda score, batches: DropGrow(score, random, constant(0.5), batches=batches)]
)
def test_scores_are_averaged_over_one_step_or_more(rule):
    with pytest.raises(ValueError, match=r"^batches is 0; it must be a whole number of at least 1"):
        rule(magnitude, batches=0)
