"""Selectors in training: samples, gradients, the temperature, and weights pruned beside tokens."""

import inspect
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import adamw, backward, batch, dead_are_zero, run, same, vit, weights_of
from tiny_tokens import by_hand, lengths, scorers, seeded, selected, variant
from torch import Tensor, nn

from svite import methods, tokens
from svite.study.compact import finished
from svite.vit.narrow import narrow
from svite.vit.verify import verify


@cache
def plain() -> nn.Module:
    """A model that nobody changes."""
    return vit()


def straight(keep: float = 0.5, patches: int = 9, width: int = 16) -> tuple[tokens.Selector, Tensor]:
    """A learned selector in training and tokens of three images, with one prefix token."""
    model = plain()  # before the seed, which it sets too
    torch.manual_seed(3)
    with torch.no_grad():
        selector = tokens.Selector(keep, 1, tokens.Learned(model, 0))
        selector.scorer.weight.mul_(20)
    return selector, torch.randn(3, patches + 1, width)


@given(st.floats(0.05, 20), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_in_training_tokens_pass_with_a_factor_of_exactly_one(tau, dtype):
    selector, x = straight()
    selector, x = selector.to(dtype), x.to(dtype)
    selector.scorer.tau.fill_(tau)
    passed = selector(x, nn.Identity())
    assert passed.shape == (3, 6, 16)
    for before, after in zip(x, passed, strict=True):
        rows = [int((before == row).all(1).nonzero()) for row in after]
        assert rows == sorted(set(rows))
        assert rows[0] == 0


@pytest.mark.parametrize("tau", [10.0, 1.0, 0.1])
def test_the_scorers_gradient_is_that_of_one_softmax_sample(tau):
    selector, x = straight()
    selector, x = selector.double(), x.double().requires_grad_()
    selector.scorer.tau.fill_(tau)
    weights = torch.randn(3, 6, 16, dtype=torch.float64)
    torch.manual_seed(7)
    (selector(x, nn.Identity()) * weights).sum().backward()

    weight, y = selector.scorer.weight.detach().requires_grad_(), x.detach().requires_grad_()
    torch.manual_seed(7)
    gumbel = -torch.empty(3, 10, dtype=torch.float64).exponential_().log()
    noisy = (nn.functional.layer_norm(y, (16,)) @ weight + gumbel)[:, 1:] / tau
    loss = (y[:, 0] * weights[:, 0]).sum()
    for image, row in enumerate(noisy):
        for order, place in enumerate(by_hand(row, 5)):
            token = y[image, 1 + place]
            value = (token.detach() * weights[image, 1 + order]).sum()
            loss = loss + row.softmax(0)[place] * value + (token * weights[image, 1 + order]).sum()
    loss.backward()
    torch.testing.assert_close(selector.scorer.weight.grad, weight.grad)
    torch.testing.assert_close(x.grad, y.grad)
    assert weight.grad.abs().min() > 0


def test_training_samples_without_replacement_in_proportion_to_the_softmax():
    selector, x = straight(keep=0.4, patches=5)
    draws = 20_000
    x = x[:1].expand(draws, -1, -1)
    probability = selector.eval().scores(x[:1], nn.Identity())[0].softmax(0)
    assert probability.max() > 0.4
    expected = torch.stack(
        [  # first or second of two draws
            p + sum(q * p / (1 - q) for j, q in enumerate(probability) if j != i) for i, p in enumerate(probability)
        ]
    )
    torch.manual_seed(0)
    scores = selector.train().scores(x, nn.Identity())
    found = torch.zeros(draws, 5).scatter(1, selector.chosen(scores), 1.0).mean(0)
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / draws).sqrt()).all()


def test_a_scorer_learns_which_tokens_help():
    selector, _ = straight(keep=0.25, patches=8)
    optimizer = torch.optim.Adam(selector.parameters(), lr=0.05)
    for step in range(150):
        tokens.anneal(selector, step / 150)
        optimizer.zero_grad()
        (-selector(torch.randn(32, 9, 16), nn.Identity())[:, 1:, 3].mean()).backward()
        optimizer.step()
    x = torch.randn(200, 9, 16)
    kept = selector.eval()(x, nn.Identity())[:, 1:, 3].mean()
    best = x[:, 1:, 3].topk(2).values.mean()
    assert kept > 0.9 * best


def test_fresh_selectors_tie_nowhere_and_let_the_noise_decide():
    scorer = tokens.Learned(vit(embed_dim=384, num_heads=6), 0).eval()
    scores = scorer(torch.randn(50, 9, 384), nn.Identity())
    assert all(len(row.unique()) == 9 for row in scores)
    assert scores.std() < 0.5  # the noise: 1.28


def test_annealing_goes_in_a_straight_line_and_moves_no_choice():
    model, outputs = selected().train(), []
    for progress, tau in ((0, 10.0), (0.5, 5.05), (1, 0.1)):
        tokens.anneal(model, progress)
        assert float(model.blocks[2].selector.scorer.tau) == pytest.approx(tau)
        outputs.append(seeded(model, 2))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], seeded(model, 3))
    plain = vit()
    before = weights_of(plain)
    tokens.anneal(plain, 0.5)
    assert same(before, weights_of(plain))


def test_checkpointed_activations_give_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        model = selected().train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(4)
        backward(model)
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert same(*grads)


def test_a_scorer_learns_under_autocast():
    model = selected().train()
    with torch.autocast("cpu", torch.bfloat16):
        backward(model)
        assert lengths(model, batch(0)[0]) == [6, 6, 6, 6, 4, 4]
    for index in (0, 2):
        gradient = model.blocks[index].selector.scorer.weight.grad
        assert gradient.isfinite().all()
        assert gradient.abs().min() > 0


def left_of(model: nn.Module) -> list[int]:
    """How many of the nine patches are left after each selector."""
    return [int(chosen[0].sum()) for chosen in tokens.kept(model.eval(), batch(0)[0])]


@pytest.mark.parametrize("method", sorted(set(methods.__all__) - {"sviteplus"}))
@scorers
def test_every_method_composes_with_tokens_and_with_what_removes_the_dead(method, scorer):
    model = tokens.select(variant("class token"), 0.5, (0, 2), scorer)
    taken = inspect.signature(getattr(methods, method)).parameters
    offered = {"steps": 10, "interval": 2, "density": 0.5, "heads": 0.5, "neurons": 0.5}
    if method == "snip":
        backward(model)
    sparsifier = getattr(methods, method)(model, **{name: value for name, value in offered.items() if name in taken})
    narrow(model, sparsifier)
    run(model, adamw(model), sparsifier, range(11))
    assert dead_are_zero(sparsifier)
    small, _ = finished(model, sparsifier)
    verify(model, small, batch(0)[0])
    assert [small(batch(0)[0]).shape, *left_of(small)] == [(8, 5), 5, 3]


@pytest.mark.parametrize("method", ["omp", "gmp"])
@scorers
def test_tokens_and_weights_are_pruned_together(method, scorer):
    model = tokens.select(variant("class token"), 0.5, (0, 2), scorer)
    steps = {"omp": {}, "gmp": {"steps": 10, "interval": 2}}[method]
    sparsifier = getattr(methods, method)(model, 0.5, **steps)
    assert {name.split(".")[-2] for name in sparsifier.masks} == {"proj", "qkv", "fc1", "fc2", "head"}
    before = weights_of(model)
    run(model, adamw(model), sparsifier, range(11))
    assert sparsifier.density == pytest.approx(0.5, abs=1e-3)
    assert dead_are_zero(sparsifier)
    moved = {name for name, value in weights_of(model).items() if not torch.equal(value, before[name])}
    assert moved == {*before}
    assert all(value.isfinite().all() for value in weights_of(model).values())
    assert lengths(model, batch(0)[0]) == [6, 6, 6, 6, 4, 4]
