"""The weights that are masked are the model's, and train in the optimizers; else a step is refused in one sentence."""

import sys
from copy import deepcopy
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from tiny import DYNAMIC, adamw, backward, made, run, same, sgd, vit, weights_of
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import svite
from svite.sparsity.sparsifier import Sparsifier

REPLACED = r"^The model's .* is not what the sparsifier masks .*; call `sparsifier\.rebind\(model\)`\.$"
UNTRAINED = r"^The optimizer does not train .*, which the sparsifier prunes; "


def assigned(model: nn.Module) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


CHANGES = {
    "assigned": (assigned, REPLACED),
    "new head": (lambda model: model.reset_classifier(7), REPLACED),
    "same head": (lambda model: model.reset_classifier(5), REPLACED),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier, attach: bool) -> None:
    backward(model)
    if attach:
        sparsifier.attach(optimizer)
        optimizer.step()
    else:
        sparsifier.before_step(optimizer)


@pytest.mark.parametrize("attach", [False, True], ids=["calls", "attach"])
@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_were_replaced_are_refused_and_nothing_changes(change, attach):
    model = vit()
    sparsifier = made("svite", model)
    alter, said = CHANGES[change]
    alter(model)
    before = weights_of(model)
    with pytest.raises(ValueError, match=said):
        step(model, adamw(model), sparsifier, attach)
    assert same(before, weights_of(model))
    assert sparsifier.attachment is None


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", ["omp", "svite"])  # one of them never updates its topology
def test_weights_that_are_replaced_after_steps_are_refused_at_the_next(method, change):
    model = vit()
    sparsifier, optimizer = made(method, model), adamw(model)
    sparsifier.attach(optimizer)
    run(model, optimizer, None, range(2))
    alter, said = CHANGES[change]
    alter(model)
    backward(model, 2)
    with pytest.raises(ValueError, match=said):
        optimizer.step()


@pytest.mark.parametrize("attach", [False, True], ids=["calls", "attach"])
def test_a_copy_of_the_model_alone_and_another_models_optimizer_are_refused(attach):
    model = vit()
    sparsifier = made("svite", model)
    for other in (deepcopy(model), vit(seed=1)):
        with pytest.raises(ValueError, match=UNTRAINED):
            step(other, adamw(other), sparsifier, attach)


def test_a_step_has_both_of_its_ends():
    model = vit()
    sparsifier, optimizer = made("svite", model), adamw(model)
    with pytest.raises(ValueError, match="A step has no `before_step`; call it between backward"):
        sparsifier.after_step()
    backward(model)
    sparsifier.before_step(optimizer)
    sparsifier.before_step(optimizer)  # the loop thought better of a step: nothing was taken
    optimizer.step()
    with pytest.raises(ValueError, match="A step has no `after_step`; call it when the optimizers have stepped"):
        sparsifier.before_step(optimizer)
    sparsifier.after_step()
    assert sparsifier.step == 1
    with pytest.raises(ValueError, match="A step has no `before_step`"):
        sparsifier.after_step()


def test_two_that_mask_one_weight_in_the_same_step_are_refused_and_one_after_the_other_are_not():
    model = vit()
    optimizer, first, second = adamw(model), made("svite", model), made("svite", model, seed=1)
    for sparsifier in (first, second):
        backward(model)
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    first.before_step(optimizer)
    said = r"^patch_embed\.proj\.weight .* is masked by another sparsifier in the same step; "
    with pytest.raises(ValueError, match=said):
        second.before_step(optimizer)
    first.after_step()
    first.attach(optimizer)
    with pytest.raises(ValueError, match=said):
        second.before_step(optimizer)


def test_narrow_refuses_another_model():
    model = vit()
    sparsifier = made("s2vite", model)
    for other in (deepcopy(model), vit(seed=1)):
        with pytest.raises(ValueError, match=REPLACED):
            svite.narrow(other, sparsifier)
    assert svite.narrow(model, sparsifier).handles


def test_what_is_missing_from_the_optimizer_is_named():
    model = vit()
    sparsifier = made("set", model)
    head = torch.optim.AdamW(model.head.parameters())
    backward(model)
    with pytest.raises(ValueError, match=r"does not train patch_embed\.proj\.weight \(and 4 more\), which"):
        sparsifier.before_step(head)
    optimizer = sgd(model)
    sparsifier.before_step(optimizer)
    group = optimizer.param_groups[0]
    group["params"] = [parameter for parameter in group["params"] if parameter is not model.head.weight]
    with pytest.raises(ValueError, match=r"does not train head\.weight, which"):
        sparsifier.before_step(optimizer)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP", "ignore:.*FullyShardedDataParallel", "ignore:.*NO_SHARD")
@pytest.mark.parametrize("original", [False, True], ids=["flat", "use_orig_params"])
def test_fsdp1_is_refused_by_name_in_either_order(original, one_process):
    def wrapped(model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))

    said = r"^FullyShardedDataParallel \(FSDP1\) has flattened the weights.*use `fully_shard`"
    before = wrapped(vit())
    for make in (lambda: made("svite", before), lambda: svite.heads(before)):
        with pytest.raises(ValueError, match=said):
            make()
    model = vit()
    sparsifier = made("svite", model)
    after = wrapped(model)
    for attach in (False, True):
        with pytest.raises(ValueError, match=said):
            step(after, adamw(after), sparsifier, attach)


@pytest.fixture
def deepspeed(monkeypatch):
    """The parts of DeepSpeed that a sparsifier meets, by their names."""
    module = ModuleType("deepspeed.runtime.engine")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    class DeepSpeedEngine(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.module = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.module(images)

    class DeepSpeedZeroOptimizer(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    for each in (DeepSpeedEngine, DeepSpeedZeroOptimizer):
        each.__module__ = module.__name__
        setattr(module, each.__name__, each)
    return module


def test_deepspeed_is_refused_by_name(deepspeed):
    model = vit()
    sparsifier = made("svite", model)
    optimizer = deepspeed.DeepSpeedZeroOptimizer(adamw(model))
    backward(model)
    for ask in (sparsifier.before_step, sparsifier.attach):
        with pytest.raises(ValueError, match=r"^DeepSpeed trains flattened copies"):
            ask(optimizer)
    for method in DYNAMIC:
        with pytest.raises(ValueError, match=r"^DeepSpeed has the weights"):
            made(method, deepspeed.DeepSpeedEngine(vit()))
