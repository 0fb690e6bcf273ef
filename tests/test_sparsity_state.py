"""States of another model, method or density, and damaged ones, are refused before anything changes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import DYNAMIC, adamw, made, run, same, vit, weights_of

import svite
from svite.sparsity.sparsifier import Sparsifier

State = dict[str, Any]


def trained(method: str, density: float = 0.5, **arguments: object) -> Sparsifier:
    model = vit()
    sparsifier = made(method, model, density, **arguments)
    run(model, adamw(model), sparsifier, range(7))
    return sparsifier


def flat(state: Any) -> list:
    """A state's leaves, comparable."""
    if isinstance(state, dict):
        return [item for key, value in state.items() for item in (key, *flat(value))]
    if isinstance(state, list):
        return [item for value in state for item in flat(value)]
    return state.tolist() if isinstance(state, torch.Tensor) else [state]


def refused(sparsifier: Sparsifier, state: State, match: str) -> None:
    """The state is refused in one sentence, and nothing has changed."""
    before, weights = flat(copy.deepcopy(sparsifier.state_dict())), weights_of(sparsifier.model)
    with pytest.raises(ValueError, match=match) as caught:
        sparsifier.load_state_dict(state)
    assert str(caught.value).count("\n") == 0
    assert flat(sparsifier.state_dict()) == before
    assert same(weights_of(sparsifier.model), weights)


@pytest.mark.parametrize("method", [*DYNAMIC, "gmp", "taylor"])
def test_a_state_of_another_density_is_refused(method):
    density = 0.25 if method == "nm" else 0.2
    said = "of another method: for .* the density was .* and is .*; build the sparsifier as it was built then"
    refused(trained(method, density), trained(method, 0.5).state_dict(), said)


@pytest.mark.parametrize(("method", "other"), [("rigl", "gmp"), ("rigl", "set"), ("svite", "srigl"), ("gmp", "taylor")])
def test_a_state_of_another_method_is_refused(method, other):
    refused(made(method, vit()), trained(other).state_dict(), "^The saved topology is of another (method|model): ")


def test_a_state_of_other_heads_or_neurons_is_refused():
    narrow, wide = (svite.methods.s2vite(vit(), 0.5, share, 24, interval=4) for share in (0.25, 0.5))
    refused(narrow, wide.state_dict(), r"for blocks\.0\.mlp\.neurons the density was 0\.5 and is 0\.25")


DAMAGES: dict[str, tuple[Callable[[State], object], str]] = {
    "short bits": (lambda s: s["alive"].update({"head.weight": torch.zeros(1, dtype=torch.uint8)}), "'alive' of head"),
    "floats": (lambda s: s["alive"].update({"head.weight": s["alive"]["head.weight"].float()}), "'alive' of head"),
    "no bits": (lambda s: s["alive"].pop("head.weight"), "alive"),
    "short history": (lambda s: s["history"]["ever"].update({"head.weight": torch.zeros(2)}), "'ever' of head"),
    "no births": (lambda s: s["history"].pop("born"), "history"),
    "births of others": (lambda s: s["history"]["born"].pop("head.weight"), "born"),
    "updates": (lambda s: s["history"]["updates"][0].pop("itop"), "updates"),
    "step": (lambda s: s.update(step=-1), "step"),
    "words": (lambda s: s.update(step="six"), "step"),
    "scores": (lambda s: s["scores"].pop("sums"), "scores"),
    "sums": (lambda s: s["scores"].update(sums={"gradient": {"head.weight": torch.zeros(3)}}), "scores"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_and_names_what_is_broken(damage):
    sparsifier = trained("svite", batches=3)
    state = copy.deepcopy(sparsifier.state_dict())
    assert state["scores"]["sums"]
    change, place = DAMAGES[damage]
    change(state)
    refused(sparsifier, state, f"^The saved topology is damaged: {place}.* is not what was saved")


@pytest.mark.parametrize("key", ["step", "pending", "shapes", "plan", "alive", "history", "scores"])
def test_a_state_without_a_key_is_refused(key):
    sparsifier = trained("svite")
    state = sparsifier.state_dict()
    del state[key]
    refused(sparsifier, state, f"^The saved topology has no {key}; ")


def test_a_state_that_fits_goes_on():
    first, second = trained("svite", batches=3), made("svite", vit(), batches=3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert flat(second.state_dict()) == flat(first.state_dict())
