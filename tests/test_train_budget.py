"""What an optimizer multiplies, against all products that torch carries out in its step."""

import pytest
import timm.optim
import torch
from tiny import adamw, backward, sgd, vit
from tiny_runs import a_run, data, loop_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from svite.study.results import dense_step
from svite.train.budget import products
from svite.vit.cost import macs


def muon(model: nn.Module, **arguments: object) -> torch.optim.Optimizer:
    return timm.optim.Muon(model.parameters(), lr=0.01, **arguments)


def of_torch(model: nn.Module, **arguments: object) -> torch.optim.Optimizer:
    return torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.01, **arguments)


OPTIMIZERS = {
    "timm's muon": muon,
    "as a recipe makes it": lambda model: timm.optim.create_optimizer_v2(model, opt="muon", lr=0.01),
    "nesterov": lambda model: timm.optim.create_optimizer_v2(model, opt="nmuon", lr=0.01),
    "adamuon": lambda model: timm.optim.create_optimizer_v2(model, opt="adamuon", lr=0.01),
    "seven iterations": lambda model: muon(model, ns_steps=7),
    "kernels place by place": lambda model: muon(model, conv_mode="batched"),
    "all by its fallback": lambda model: timm.optim.Muon(
        [{"params": list(model.parameters()), "use_fallback": True}], lr=0.01
    ),
    "torch's muon": of_torch,
    "torch's, three iterations": lambda model: of_torch(model, ns_steps=3),
    "adamw": adamw,
    "sgd": sgd,
}


def counted(optimizer: torch.optim.Optimizer) -> int:
    with FlopCounterMode(display=False) as flops:
        optimizer.step()
    return flops.get_total_flops() // 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizers_products_are_those_that_torch_carries_out(name):
    model = vit(in_chans=8)  # so that a kernel place by place is a matrix too
    optimizer = OPTIMIZERS[name](model)
    images = torch.randn(4, 8, 12, 12)
    before = products(optimizer)
    model(images).sum().backward()
    assert counted(optimizer) == products(optimizer) == before
    assert (before > 0) == (name not in ("all by its fallback", "adamw", "sgd"))


def test_what_is_frozen_is_not_multiplied():
    model = vit()
    model.blocks[0].mlp.requires_grad_(False)
    optimizer = muon(model)
    backward(model)
    assert counted(optimizer) == products(optimizer) < products(muon(vit()))


def test_a_dense_step_of_a_run_has_its_optimizers_products_once_whatever_the_batch(tmp_path):
    run = a_run("dense", optimizer="muon")
    made = loop_of(run, data(tmp_path / "data"))
    per_image = 3 * macs(made.plain_model).total()
    assert dense_step(run) == run.recipe.batch * per_image + products(made.optimizer)
    made.model.train()
    made.advance()
    assert made.spent == dense_step(run)
    assert made.spending.step(None, made.optimizer, 2) == 2 * per_image + products(made.optimizer)
