"""Several optimizers make one step; two sparsifiers on one optimizer keep an entry of their own in its state."""

import io

import pytest
import torch
from tiny import SHORT, adamw, alive_of, backward, dead_are_zero, made, same, sgd, vit, weights_of
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from svite import methods


def halves(model: nn.Module) -> list[Optimizer]:
    """Torch's Muon, which takes matrices only, and AdamW for the rest."""
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    return [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), AdamW(others, lr=0.01)]


def two_adamw(model: nn.Module) -> list[Optimizer]:
    """AdamW, in two parts."""
    own = list(model.blocks.parameters())
    others = [p for p in model.parameters() if all(p is not o for o in own)]
    return [AdamW(own, lr=0.01, weight_decay=0.05), AdamW(others, lr=0.01, weight_decay=0.05)]


def learn(model: nn.Module, optimizers: list[Optimizer], sparsifier=None, steps: range = SHORT) -> None:
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(model, step)
        if sparsifier:
            sparsifier.before_step(*optimizers)
        for optimizer in optimizers:
            optimizer.step()
        if sparsifier:
            sparsifier.after_step()


@pytest.mark.parametrize("method", ["svite", "taylor", "l1", "s2vite"])
@pytest.mark.parametrize("attach", [False, True], ids=["calls", "attach"])
def test_two_optimizers_of_one_kind_do_bit_for_bit_what_one_does(attach, method):
    whole, parts = vit(), vit()
    first, second = made(method, whole), made(method, parts)
    learn(whole, [adamw(whole)], first, range(24))
    optimizers = two_adamw(parts)
    if attach:
        second.attach(*optimizers)
    learn(parts, optimizers, None if attach else second, range(24))
    assert same(weights_of(whole), weights_of(parts))
    assert first.updates == second.updates
    assert first.step == second.step == 24


def test_muon_and_adamw_step_together_and_only_muon_gets_dense_gradients():
    explicit, attached = vit(), vit()
    first, second = made("svite", explicit), made("svite", attached)
    learn(explicit, pair := halves(explicit), first)
    second.attach(*(hooked := halves(attached)))
    learn(attached, hooked)
    assert same(weights_of(explicit), weights_of(attached))
    assert first.step == second.step == len(SHORT)
    assert first.masked_gradients(*pair) == ["patch_embed.proj.weight", "head.weight"]
    for name, weight in first.weights.items():
        state = (pair[0].state if weight in pair[0].state else pair[1].state)[weight]
        dead = ~first.masks[name]
        if weight not in pair[0].state:
            assert not any(v[dead].any() for v in state.values() if v.shape == weight.shape)
    assert dead_are_zero(first)
    assert dead_are_zero(second)


def test_steps_by_hand_leave_one_hook_an_optimizer():
    model = vit()
    optimizers = halves(model)
    learn(model, optimizers, made("svite", model))
    assert [len(optimizer._optimizer_step_post_hooks) for optimizer in optimizers] == [1, 1]


def test_one_of_two_optimizers_alone_is_refused():
    model = vit()
    optimizers = halves(model)
    sparsifier = made("svite", model)
    backward(model)
    for optimizer in optimizers:
        for ask in (sparsifier.before_step, sparsifier.attach):
            with pytest.raises(ValueError, match=r"does not train .* pass the optimizers of a step together"):
                ask(optimizer)
    with pytest.raises(ValueError, match="does not train"):
        sparsifier.before_step()


def test_a_step_of_which_a_scaler_skips_one_part_counts_once_and_keeps_the_dead_at_zero():
    model = vit()
    optimizers, sparsifier = halves(model), made("set", model)
    sparsifier.attach(*optimizers)
    for step, taken in enumerate(([0, 1], [0], [0, 1], [1], [1], [0, 1])):
        backward(model.zero_grad() or model, step)
        for index in taken:
            optimizers[index].step()
            assert dead_are_zero(sparsifier)
        assert sparsifier.state_dict()["step"] == step + 1
    assert len(sparsifier.updates) == 1


def test_a_second_attachment_and_calls_beside_one_are_refused():
    model = vit()
    sparsifier, optimizer = made("svite", model), adamw(model)
    handle = sparsifier.attach(optimizer)
    backward(model)
    for ask in (
        lambda: sparsifier.attach(optimizer),
        lambda: sparsifier.before_step(optimizer),
        sparsifier.after_step,
    ):
        with pytest.raises(ValueError, match=r"is attached to an optimizer.*`sparsifier\.attachment\.remove\(\)`"):
            ask()
    optimizer.step()
    assert sparsifier.step == 1
    handle.remove()
    learn(model, [optimizer], sparsifier)
    assert sparsifier.step == 1 + len(SHORT)
    other = made("omp", model)
    sparsifier.attach(optimizer)
    with pytest.raises(ValueError, match=r"^patch_embed\.proj\.weight .* is masked by another sparsifier"):
        other.attach(optimizer)
    assert other.attachment is None
    assert len(optimizer._optimizer_step_pre_hooks) == 1


def pair_on(model: nn.Module) -> list:
    attention = methods.set(model, 0.5, 24, interval=4, layers=["blocks.*.attn.*"])
    return [attention, methods.gmp(model, 0.3, 24, interval=4, layers=["blocks.*.mlp.*"])]


def test_two_sparsifiers_on_one_optimizer_save_and_resume_each_its_own():
    model, optimizer = vit(), None
    pair, optimizer = pair_on(model), sgd(model)
    for sparsifier in pair:
        sparsifier.attach(optimizer)
    learn(model, [optimizer], steps=range(6))
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    learn(model, [optimizer], steps=range(6, 16))
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)

    other = vit(seed=1)
    resumed, hooked = pair_on(other), sgd(other)
    for sparsifier in resumed:
        sparsifier.attach(hooked)
    other.load_state_dict(saved["model"])
    hooked.load_state_dict(saved["optimizer"])
    learn(other, [hooked], steps=range(6, 16))
    assert same(weights_of(model), weights_of(other))
    for first, second in zip(pair, resumed, strict=True):
        assert first.updates == second.updates
        assert same(alive_of(first), alive_of(second))


def test_several_sgd_groups_and_a_closure():
    model = vit()
    sparsifier = made("svite", model)
    optimizers = [SGD(model.blocks.parameters(), lr=0.1), adamw(nn.ModuleList([model.patch_embed, model.head]))]
    sparsifier.attach(*optimizers)
    for step in SHORT:

        def closure(step=step):
            return backward(model.zero_grad() or model, step).requires_grad_()

        for optimizer in optimizers:
            optimizer.step(closure)
    assert sparsifier.step == len(SHORT)
    assert dead_are_zero(sparsifier)
