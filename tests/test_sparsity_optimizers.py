"""What optimizers make of dead entries: living weights move as those of a smaller, dense matrix, or it is told."""

import warnings

import pytest
import timm.optim
import torch
from tiny import backward, made, same, vit, weights_of
from torch import Tensor, nn
from torch.optim import Optimizer

from svite.sparsity.optimizers import ELEMENTWISE, FACTORED

DENSITY, STEPS = 0.1, 6


def names(cautious: bool) -> list[str]:
    """timm's names of all optimizers said to work element by element."""
    found = []
    for name in timm.optim.list_optimizers(exclude_filters=["bnb*", "fused*"]):
        info = timm.optim.get_optimizer_info(name)
        of_kind = bool((info.defaults or {}).get("caution")) == cautious
        if info.opt_class.__name__ in ELEMENTWISE and of_kind:
            found.append(name)
    return found


def optimizer_of(name: str, weight: nn.Parameter, decay: float) -> Optimizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.optim.create_optimizer_v2([weight], opt=name, lr=1e-3, weight_decay=decay)


def moved(name: str, scattered: bool, decay: float = 0.05) -> tuple[Tensor, Tensor]:
    """How far the living of a masked matrix move, and how far the same weights without the dead between them."""
    draw = torch.Generator().manual_seed(0)
    alive = torch.zeros(64, 80, dtype=torch.bool)
    if scattered:
        alive.view(-1)[torch.randperm(alive.numel(), generator=draw)[: int(DENSITY * alive.numel())]] = True
    else:
        alive[:, : int(DENSITY * 80)] = True
    start = torch.randn(64, 80, generator=draw) * alive
    masked = nn.Parameter(start.clone())
    small = nn.Parameter(start[alive] if scattered else start[alive].view(64, -1))
    optimizers = [optimizer_of(name, weight, decay) for weight in (masked, small)]
    for _ in range(STEPS):
        gradient = torch.randn(64, 80, generator=draw) + 0.5
        masked.grad, small.grad = gradient * alive, gradient[alive].view_as(small).clone()
        for optimizer in optimizers:
            optimizer.step()
        masked.data.mul_(alive)
    return (masked.detach() - start)[alive], small.detach().view(-1) - start[alive]


@pytest.mark.parametrize("name", names(cautious=False))
def test_living_weights_move_as_in_a_dense_matrix_of_their_own(name):
    kind = timm.optim.get_optimizer_info(name).opt_class.__name__
    ours, theirs = moved(name, scattered=True)
    ratio = float(ours.norm() / theirs.norm())
    if kind in FACTORED:
        assert 2 < ratio < 5  # what the warning says
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))
        ours, theirs = moved(name, scattered=False)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", names(cautious=True))
def test_cautious_optimizers_move_too_far_and_are_refused_by_name(name):
    ours, theirs = moved(name, scattered=False, decay=0.0)  # with decay, LAMB's trust ratio takes the factor back
    assert float(ours.norm() / theirs.norm()) > 5  # the fault that the refusal is for
    model = vit()
    sparsifier = made("svite", model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = timm.optim.create_optimizer_v2(model, opt=name, lr=1e-3)
    backward(model)
    before = weights_of(model)
    kind = type(optimizer).__name__
    for ask in (sparsifier.before_step, sparsifier.attach):
        with pytest.raises(ValueError, match=rf"^{kind} with caution=True .*; leave caution off\.$"):
            ask(optimizer)
    assert same(before, weights_of(model))


@pytest.mark.parametrize("name", ["adafactor", "adafactorbv"])
def test_factored_moments_are_told_once(name):
    model = vit()
    sparsifier, optimizer = made("svite", model), timm.optim.create_optimizer_v2(model, opt=name, lr=1e-3)
    backward(model)
    with pytest.warns(UserWarning, match=r"^Adafactor\w* keeps second moments by row and column"):
        sparsifier.before_step(optimizer)
    sparsifier.after_step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsifier.before_step(optimizer)
