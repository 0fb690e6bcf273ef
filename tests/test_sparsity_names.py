"""Names of weights: those of the model itself, whatever wraps it, and whatever its own children are called."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
import timm.utils
import torch
from tiny import alive_of, dead_are_zero, made, same, vit, weights_of
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from svite import methods
from svite.sparsity.names import named_modules, named_parameters, unwrapped


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def in_parts(model: nn.Module) -> nn.Module:
    """Wrapped inside: a block compiled and checkpointed, a layer of it compiled once more."""
    model.blocks[0].mlp = compiled(model.blocks[0].mlp)
    model.blocks[0] = checkpoint_wrapper(compiled(model.blocks[0]))
    return model


class Mine(AveragedModel):
    """A wrapper of somebody's own."""


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": compiled,
    "averaged": AveragedModel,
    "averaged by timm": timm.utils.ModelEmaV3,
    "a class of one's own": Mine,
    "averaged after compiling": lambda model: AveragedModel(compiled(model)),
    "compiled after averaging": lambda model: compiled(AveragedModel(model)),
    "in parts": in_parts,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_names_and_topology_are_those_of_the_model_itself_whatever_wraps_it(wrap):
    plain, wrapped = vit(), wrap(vit())
    assert list(named_parameters(wrapped)) == [name for name, _ in plain.named_parameters()]
    assert list(named_modules(wrapped)) == [name for name, _ in plain.named_modules()]
    assert type(unwrapped(wrapped)) is type(plain)
    first, second = made("set", plain), made("set", wrapped)
    assert same(alive_of(first), alive_of(second))
    other = wrap(vit(seed=1))
    first.apply(other)
    assert all(bool((p[~first.masks[n]] == 0).all()) for n, p in named_parameters(other).items() if n in first.masks)


class Twin(nn.Linear):
    """A layer with a child whose names equal its own, had one left `module` out."""

    def __init__(self, wide: int) -> None:
        super().__init__(wide, wide)
        self.module = nn.Linear(wide, wide)
        self._orig_mod = nn.Linear(wide, wide, bias=False)


def test_a_child_called_module_is_found_beside_its_parent():
    model = Twin(8)
    sparsifier = methods.omp(model, 0.25)
    assert list(sparsifier.weights) == ["weight", "module.weight", "_orig_mod.weight"]
    assert sum(int(w.count_nonzero()) for w in sparsifier.weights.values()) == 3 * 64 // 4
    assert dead_are_zero(sparsifier)
    assert unwrapped(model) is model


def test_a_model_of_one_child_called_module_is_no_wrapper():
    model = nn.Sequential(OrderedDict(module=nn.Linear(8, 8)))
    assert list(methods.omp(model, 0.5).weights) == ["module.weight"]
    assert unwrapped(model) is model


def test_two_weights_of_one_name_are_refused_and_both_named():
    model = AveragedModel(nn.Linear(4, 4))
    model.weight = nn.Parameter(torch.ones(4, 4))
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"weight and module\.weight would both be called weight here"):
        methods.omp(model, 0.5)
    assert same(before, weights_of(model))
