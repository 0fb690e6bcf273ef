"""Steps that are no plain ones: skipped in part, copied or loaded in their middle, left by an earlier sparsifier."""

import gc
import io
import pickle
from copy import deepcopy

import pytest
import torch
from jaxtyping import config
from tiny import STEPS, adamw, alive_of, backward, batch, made, run, same, vit, weights_of
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer

import svite
from svite import Sparsifier, methods
from svite.sparsity.layers import elements
from svite.sparsity.pool import uniform
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import once
from svite.sparsity.score import magnitude, taylor
from svite.sparsity.scoring import Scoring

BOTH = [0, 1]
TAKEN = {
    "the first skipped": [BOTH, [1], *[BOTH] * 10],
    "the second skipped before an update": [*[BOTH] * 3, [0], *[BOTH] * 8],
    "the first skipped before an update": [*[BOTH] * 3, [1], *[BOTH] * 8],
    "both skipped": [BOTH, [], *[BOTH] * 10],
    "the second every other time": [BOTH, [0]] * 7,
    "the other way round": [[1, 0]] * 12,
    "any way round": [[1, 0], [0, 1], [1], [0], [0, 1], [1, 0]] * 2,
}


def two(model: nn.Module) -> list[Optimizer]:
    blocks = {id(parameter) for parameter in model.blocks.parameters()}
    parts = [[p for p in model.parameters() if (id(p) in blocks) == first] for first in (True, False)]
    return [AdamW(part, lr=0.01) for part in parts]


def learned(method: str, taken: list[list[int]], attach: bool, look: bool = False) -> tuple[nn.Module, Sparsifier]:
    model = vit()
    sparsifier, optimizers = made(method, model), two(model)
    if attach:
        sparsifier.attach(*optimizers)
    for step, indices in enumerate(taken):
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(model, step)
        if not attach:
            sparsifier.before_step(*optimizers)
        for index in indices:
            optimizers[index].step()
            if look:
                sparsifier.state_dict()
        if not attach:
            sparsifier.after_step()
    sparsifier.state_dict()  # ends the last one
    return model, sparsifier


@pytest.mark.parametrize("taken", TAKEN)
@pytest.mark.parametrize("method", ["rigl", "s2vite"])
@pytest.mark.parametrize("look", [False, True])
def test_hooks_count_and_grow_as_calls_do_whatever_part_of_a_step_is_taken(method, taken, look):
    (by_hand, first), (hooked, second) = (learned(method, TAKEN[taken], attach, look) for attach in (False, True))
    assert second.step == first.step
    assert second.updates == first.updates
    assert all(update.born for update in second.updates)
    assert len(second.updates) >= 2
    assert same(weights_of(by_hand), weights_of(hooked))


def test_a_real_scaler_that_skips_one_of_two_optimizers_stops_no_growth():
    model = vit()
    sparsifier, optimizers = made("rigl", model), two(model)
    sparsifier.attach(*optimizers)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(14):
        images, labels = batch(step)
        scaler.scale(cross_entropy(model(images), labels)).backward()
        if step == 1:
            model.blocks[0].mlp.fc1.weight.grad[0, 0] = float("inf")
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert [update.step for update in sparsifier.updates] == [4, 8, 12]
    assert all(update.born for update in sparsifier.updates)


def test_two_closures_are_one_step():
    model = vit()
    sparsifier, optimizers = made("set", model), two(model)
    sparsifier.attach(*optimizers)
    for step in range(6):
        for optimizer in optimizers:
            optimizer.step(lambda step=step: backward(model, step).requires_grad_())
    assert sparsifier.step == 6


def test_an_optimizer_that_is_given_twice_counts_once():
    model = vit()
    sparsifier, optimizer = made("svite", model), adamw(model)
    sparsifier.attach(optimizer, optimizer)
    run(model, optimizer, None, range(6))
    assert sparsifier.step == 6


# What an earlier sparsifier left


def test_one_that_is_still_attached_to_these_weights_is_named_whatever_its_optimizer():
    model = vit()
    first = made("omp", model, 0.1)
    handle = first.attach(adamw(model))
    second, optimizer = made("omp", model, 0.5), adamw(model)
    backward(model)
    for ask in (second.attach, second.before_step):
        with pytest.raises(ValueError, match="is masked by another sparsifier in the same step"):
            ask(optimizer)
    handle.remove()
    second.attach(optimizer)


@pytest.mark.parametrize("left", ["detached", "forgotten", "followed"])
def test_one_that_is_used_no_more_writes_nothing_into_the_model(left):
    model = vit(depth=2)
    sparsifier, optimizer = made("s2vite", model), adamw(model)
    handle = sparsifier.attach(optimizer)
    run(model, optimizer, None, range(4))  # to the step of an update
    later = None
    if left == "followed":
        later = methods.omp(model, 0.5)
    else:
        handle.remove()
    if left == "forgotten":
        del sparsifier, handle, optimizer
        gc.collect()
    before = weights_of(model)
    model.train()(batch(0)[0])
    assert same(before, weights_of(model))
    assert later is None or later.density < 0.6


def test_who_is_used_again_lays_again():
    model = vit()
    sparsifier, optimizer = made("s2vite", model), adamw(model)
    sparsifier.attach(optimizer).remove()
    run(model, optimizer, sparsifier)
    other = vit()
    plain = made("s2vite", other)
    run(other, adamw(other), plain)
    assert plain.updates == sparsifier.updates


def test_a_step_that_was_broken_off_is_nobodys_business():
    model = vit()
    optimizer, broken = adamw(model), made("set", model)
    backward(model)
    broken.before_step(optimizer)
    optimizer.step()  # and here the cell was stopped
    again = made("set", model)
    run(model, optimizer, again, range(2))
    again.before_step(optimizer)
    again.attach(optimizer)
    run(model, optimizer, None, range(2, 5))
    deepcopy((model, again, optimizer))
    again.attachment.remove()
    run(model, optimizer, again, range(5, 7))
    assert again.step == 7


def test_an_attachment_whose_optimizer_is_gone_masks_nothing():
    model = vit()
    made("omp", model, 0.1).attach(adamw(model))
    gc.collect()
    model.load_state_dict(vit(seed=3).state_dict())
    optimizer, sparsifier = adamw(model), made("omp", model, 0.9)
    sparsifier.attach(optimizer)
    backward(model)
    weight, alive = sparsifier.weights["blocks.0.mlp.fc1.weight"], sparsifier.masks["blocks.0.mlp.fc1.weight"]
    assert (weight.grad != 0)[alive].float().mean() > 0.9


@pytest.mark.parametrize("change", ["loaded", "applied"])
def test_weights_that_wait_are_laid_again_where_they_were_wiped_away(change):
    def grown(wiped: bool) -> list[int]:
        model = vit()
        sparsifier, optimizer = made("s2vite", model), adamw(model)
        run(model, optimizer, sparsifier, range(4))
        if wiped:
            before = deepcopy(model.state_dict())
            model(batch(9)[0])
            model.load_state_dict(before) if change == "loaded" else sparsifier.apply(model)
        run(model, optimizer, sparsifier, range(4, STEPS))
        return [update.born for update in sparsifier.updates]

    assert grown(True) == grown(False)


def test_who_was_detached_before_an_update_looks_at_the_next_step():
    model = vit()
    sparsifier, optimizer = made("s2vite", model), adamw(model)
    sparsifier.attach(optimizer)
    run(model, optimizer, None, range(4))
    sparsifier.attachment.remove()
    run(model, optimizer, sparsifier, range(4, STEPS))
    assert [update.step for update in sparsifier.updates][:2] == [5, 8]
    assert all(update.born for update in sparsifier.updates[:2])


def test_who_was_detached_while_scores_are_averaged_updates_no_sooner():
    model = vit()
    sparsifier = methods.s2vite(model, heads=0.5, neurons=0.5, steps=STEPS, interval=4, batches=3)
    optimizer = adamw(model)
    sparsifier.attach(optimizer)
    run(model, optimizer, None, range(2))
    sparsifier.attachment.remove()
    run(model, optimizer, sparsifier, range(2, STEPS))
    assert [update.step for update in sparsifier.updates] == [4, 8, 12, 16]


# Copies and states in the middle of a step


def test_a_copy_between_two_optimizers_goes_on_as_its_original():
    model = vit()
    sparsifier, optimizers = made("rigl", model), two(model)
    sparsifier.attach(*optimizers)
    for step in range(4):
        backward(model.zero_grad() or model, step)
        optimizers[0].step()
        if step < 3:
            optimizers[1].step()
    twin, other, pair = deepcopy((model, sparsifier, optimizers))
    for own, others in zip(twin.parameters(), model.parameters(), strict=True):
        own.grad = others.grad.clone()  # torch copies none
    for each, changes, parts in ((model, sparsifier, optimizers), (twin, other, pair)):
        parts[1].step()
        for step in range(4, 14):
            for part in parts:
                part.zero_grad()
            backward(each, step)
            for part in parts:
                part.step()
        assert changes.step == 14
    assert same(weights_of(model), weights_of(twin))
    assert other.updates == sparsifier.updates


def test_a_copy_between_calls_is_refused():
    model = vit()
    sparsifier, optimizer = made("l1", model), adamw(model)
    backward(model)
    sparsifier.before_step(optimizer)
    with pytest.raises(ValueError, match="A copy would not end the step that goes on; copy after `after_step`"):
        deepcopy((model, sparsifier, optimizer))


def test_a_state_that_is_loaded_between_calls_begins_a_step_of_its_own():
    model = vit()
    sparsifier, optimizer = made("svite", model), adamw(model)
    run(model, optimizer, sparsifier, range(3))
    saved = sparsifier.state_dict()
    backward(model)
    sparsifier.before_step(optimizer)
    optimizer.step()
    sparsifier.load_state_dict(saved)
    run(model, optimizer, sparsifier, range(1))
    assert sparsifier.step == 4


def test_a_state_that_the_optimizer_refuses_changes_no_topology():
    model = vit()
    sparsifier, optimizer = made("svite", model), adamw(model)
    sparsifier.attach(optimizer)
    run(model, optimizer, None, range(6))
    state = optimizer.state_dict()
    run(model, optimizer, None, range(6, 10))
    before = alive_of(sparsifier)
    state["param_groups"] *= 2
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(state)
    assert same(before, alive_of(sparsifier))
    assert sparsifier.step == 10


def test_of_two_sparsifiers_none_is_restored_where_one_refuses():
    def pair(density: float) -> tuple[list[Sparsifier], Optimizer]:
        model = vit()
        own = [made("set", model, d, layers=[p]) for d, p in ((0.5, "blocks.*.attn.*"), (density, "blocks.*.mlp.*"))]
        optimizer = adamw(model)
        for sparsifier in own:
            sparsifier.attach(optimizer)
        return own, optimizer

    _, saved = pair(0.3)
    (first, second), optimizer = pair(0.4)
    first.step = 7
    with pytest.raises(ValueError, match="of another method"):
        optimizer.load_state_dict(saved.state_dict())
    assert (first.step, second.step) == (7, 0)


def test_a_loaded_topology_that_is_taken_over_by_hand_is_no_news(recwarn):
    model = vit()
    sparsifier, optimizer = made("svite", model), adamw(model)
    sparsifier.attach(optimizer)
    run(model, optimizer, None, range(6))
    state, other = optimizer.state_dict(), vit()
    late, fresh = adamw(other), made("svite", other)
    late.load_state_dict(state)
    fresh.load_state_dict(state["sparsifier"])
    run(other, late, fresh, range(1))
    assert not [each for each in recwarn if "came with the optimizer's state" in str(each.message)]
    late.load_state_dict(state)
    again = made("svite", other)
    with pytest.warns(UserWarning, match="came with the optimizer's state"):
        run(other, late, again, range(1))


# Weights of two units, small numbers, and what is not given as it should be


def test_a_weight_of_two_units_is_refused():
    model = vit()
    twice = [*uniform(svite.heads(model), 0.5), *uniform(elements(model), 0.9)]
    with pytest.raises(ValueError, match=r"is in two units, blocks\.0\.attn\.heads and blocks\.0\.attn"):
        Sparsifier(model, twice, Prune(magnitude), once())
    with pytest.raises(ValueError, match="A unit is in two pools"):
        Sparsifier(model, uniform(elements(model), 0.9) * 2, Prune(magnitude), once())
    with pytest.raises(ValueError, match="There are 1 rules for 4 pools"):
        Sparsifier(model, uniform(svite.structures(vit(depth=2)), 0.5), [Prune(magnitude)], once())
    with pytest.raises(ValueError, match="There is nothing to prune"):
        methods.omp(model, 0.5, cut=lambda model, layers: [])


def test_a_tied_weight_is_no_part_of_a_structure():
    model = vit(depth=2)
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc1\.weight is tied to another parameter"):
        methods.s2vite(model, 0.5, 0.5, STEPS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_are_told_apart(dtype):
    model = vit()
    sparsifier = made("rigl", model, 1.0)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 1e-5)
    model.to(dtype)
    scores = Scoring(sparsifier, 0).now(taylor, "head.weight", 0)
    assert scores.dtype == torch.float32
    assert (scores > 0).float().mean() > 0.9


def test_a_topology_that_never_changes_is_told():
    with pytest.warns(UserWarning, match="The topology never changes: it may up to step 37, and interval is 100"):
        methods.rigl(vit(), 0.5, 50)


def test_what_is_given_in_another_form_is_one_sentence(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as users have it
    model = vit()
    sparsifier, optimizer = made("svite", model), adamw(model)
    for ask in (sparsifier.attach, sparsifier.before_step):
        with pytest.raises(ValueError, match="Optimizers of one step are given one by one"):
            ask([optimizer])
    with pytest.raises(ValueError, match=r"Layers are named one by one, .* not as \['head'\]"):
        sparsifier.drop(["head"])
    with pytest.raises(ValueError, match="on the meta device"):
        sparsifier.rebind(vit().to("meta"))
    for save in (pickle.dumps, lambda it: torch.save(it, io.BytesIO())):
        with pytest.raises(TypeError, match="A sparsifier is neither pickled nor copied in part: save `state_dict"):
            save(sparsifier)


# Forward passes


def test_two_forward_passes_may_come_before_one_backward_pass():
    model = vit()
    sparsifier, optimizer = made("s2vite", model), SGD(model.parameters(), lr=0.05)
    for step in range(6):
        model.zero_grad()
        sum(model(batch(number)[0]).square().mean() for number in (step, step + 100)).backward()
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    assert sum(update.born for update in sparsifier.updates)


def test_narrow_may_be_called_again_and_a_dropped_layer_is_whole():
    model = vit(depth=2)
    sparsifier = made("s2vite", model)
    svite.narrow(model, sparsifier)
    model.reset_classifier(7)
    sparsifier.rebind(model)
    expected = model.train()(batch(0)[0])
    svite.narrow(model, sparsifier)
    assert torch.equal(model(batch(0)[0]), expected)
    sparsifier.drop("blocks.0.attn")
    assert torch.allclose(model(batch(0)[0]), expected, atol=1e-5)
