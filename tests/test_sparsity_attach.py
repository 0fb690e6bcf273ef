"""attach(): hooks that do what explicit calls do, and an optimizer whose state_dict carries the topology."""

import io

import pytest
import torch
from accelerate import Accelerator
from tiny import (
    OPTIMIZERS,
    SHORT,
    adamw,
    alive_of,
    backward,
    dead_are_zero,
    made,
    run,
    same,
    vit,
    weights_of,
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_attach_equals_explicit_calls_bit_for_bit(optimizer):
    explicit, attached = vit(), vit()
    run(explicit, OPTIMIZERS[optimizer](explicit), first := made("svite", explicit), SHORT)
    second, hooked = made("svite", attached), OPTIMIZERS[optimizer](attached)
    second.attach(hooked)
    run(attached, hooked, None, SHORT)
    assert same(weights_of(explicit), weights_of(attached))
    assert first.updates == second.updates
    assert len(second.updates) == 2
    assert second.step == len(SHORT)


def test_attach_works_with_a_closure_that_makes_the_gradients_inside_the_step():
    explicit, attached = vit(), vit()
    run(explicit, adamw(explicit), made("svite", explicit), SHORT)
    sparsifier, optimizer = made("svite", attached), adamw(attached)
    sparsifier.attach(optimizer)
    for step in SHORT:

        def closure(step=step):
            optimizer.zero_grad()
            return backward(attached, step).requires_grad_()

        optimizer.step(closure) if step % 2 else optimizer.step(closure=closure)
    assert same(weights_of(explicit), weights_of(attached))


def test_attached_gradients_are_masked_as_they_accumulate_except_at_updates():
    model = vit()
    sparsifier, optimizer = made("svite", model), adamw(model)
    handle = sparsifier.attach(optimizer)
    for step in range(9):
        optimizer.zero_grad()
        for part in range(2):  # accumulation
            backward(model, 2 * step + part)
        dense = any(weight.grad[~sparsifier.masks[name]].any() for name, weight in sparsifier.weights.items())
        assert dense == (step in (4, 8))
        optimizer.step()
        assert dead_are_zero(sparsifier)
    handle.remove()
    optimizer.zero_grad()
    backward(model, 9)
    assert any(weight.grad[~sparsifier.masks[name]].any() for name, weight in sparsifier.weights.items())
    optimizer.step()
    assert sparsifier.step == 9


# The optimizer's state_dict


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_a_loop_that_resumes_model_and_optimizer_resumes_the_topology(first, optimizer):
    model, make = vit(), OPTIMIZERS[optimizer]
    hooked, sparsifier = make(model), made("svite", model)
    sparsifier.attach(hooked)
    run(model, hooked, None, SHORT[:6])
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": hooked.state_dict()}, buffer)
    run(model, hooked, None, SHORT[6:])
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)

    other = vit(seed=1)
    resumed, parts = made("svite", other, seed=1), {"model": other, "optimizer": make(other)}
    resumed.attach(parts["optimizer"])
    for name in (first, *(parts.keys() - {first})):
        parts[name].load_state_dict(saved[name])
    assert dead_are_zero(resumed)
    run(other, parts["optimizer"], None, SHORT[6:])
    assert same(weights_of(model), weights_of(other))
    assert resumed.summary().equals(sparsifier.summary())


def test_a_topology_that_is_loaded_before_anybody_is_attached_is_told():
    model = vit()
    optimizer, sparsifier = adamw(model), made("svite", model)
    sparsifier.attach(optimizer)
    run(model, optimizer, None, SHORT[:6])
    saved, other = optimizer.state_dict(), vit()
    late = adamw(other)
    late.load_state_dict(saved)
    made("svite", other).attach(late)
    with pytest.warns(UserWarning, match="loaded before the sparsifier was attached, and is not taken over; attach"):
        run(other, late, None, range(1))
    assert "with_topology" not in late.param_groups[0]
    optimizer.load_state_dict(saved)
    assert "with_topology" not in optimizer.param_groups[0]


def test_accelerates_prepare_leaves_weights_alone_that_were_loaded_before_it():
    model, loaded = vit(), weights_of(vit(seed=1))
    sparsifier, optimizer = made("svite", model), adamw(model)
    sparsifier.attach(optimizer)
    model.load_state_dict(loaded)  # of another topology; the optimizer's state, which says so, is still to come
    Accelerator(cpu=True).prepare(optimizer)  # hands the optimizer its own state
    assert same(weights_of(model), loaded)


def test_a_state_without_a_topology_or_with_another_models_is_refused_and_nothing_changes():
    model, narrow, bare = vit(), vit(embed_dim=24), vit()
    sparsifier, optimizer, other = made("svite", model), adamw(model), adamw(narrow)
    handle = sparsifier.attach(optimizer)
    made("svite", narrow).attach(other)
    before = alive_of(sparsifier)
    with pytest.raises(ValueError, match="without a topology; load it first and attach then"):
        optimizer.load_state_dict(adamw(bare).state_dict())
    with pytest.raises(ValueError, match=r"of another model: .*attn\.qkv\.weight"):
        optimizer.load_state_dict(other.state_dict())
    assert same(before, sparsifier.masks)
    handle.remove()
    assert "sparsifier" not in optimizer.state_dict()
    optimizer.load_state_dict(adamw(bare).state_dict())
