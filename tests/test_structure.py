"""Heads and neurons as members: what dies, what is born, and training on what lives."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import OPTIMIZERS, STEPS, adamw, backward, batch, train, vit
from torch import nn

from svite import methods
from svite.sparsity import candidates
from svite.sparsity.layers import elements
from svite.sparsity.pool import global_allocation, uniform, with_branches
from svite.sparsity.score import gradient
from svite.vit.gates import fold
from svite.vit.gather import gather_inputs
from svite.vit.narrow import narrow
from svite.vit.structure import heads, neurons, structures

DEEP = {"depth": 2, "num_heads": 4, "mlp_ratio": 2.0}
CUTS = {"heads": heads, "neurons": neurons, "structures": structures}


def model_of(seed: int = 0, **arguments: object) -> nn.Module:
    """Two blocks of four heads and 32 neurons; biases are not zero, as in a trained model."""
    model = vit(seed, **(DEEP | arguments))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def counts(sparsifier) -> dict[str, int]:
    return {name: int(alive.sum()) for name, alive in sparsifier.alive.items()}


def dead_are_zero(sparsifier) -> bool:
    return not any(bool(sparsifier.weights[name][~mask].any()) for name, mask in sparsifier.masks.items())


# ---- units --------------------------------------------------------------------------------------


@given(st.integers(0, 3))
@settings(max_examples=4, deadline=None)
def test_a_heads_elements_are_those_that_make_its_output(head):
    model = model_of()
    unit = heads(model)[1]
    alive = torch.ones(1, 4, dtype=torch.bool)
    alive[0, head] = False
    mask = {part.name: part.cut.spread(alive, model.get_parameter(part.name).shape) for part in unit.parts}
    rows = torch.arange(48).view(3, 4, 4)[:, head].flatten()
    assert unit.name == "blocks.1.attn.heads"
    assert (~mask["blocks.1.attn.qkv.weight"]).nonzero()[:, 0].unique().tolist() == rows.tolist()
    assert mask["blocks.1.attn.qkv.weight"].sum() == 36 * 16
    assert (~mask["blocks.1.attn.qkv.bias"]).nonzero().flatten().tolist() == rows.tolist()
    assert (~mask["blocks.1.attn.proj.weight"]).all(0).nonzero().flatten().tolist() == rows.tolist()[:4]


def test_a_neurons_elements_are_its_row_bias_and_column():
    unit = neurons(model_of())[0]
    alive = torch.ones(1, 32, dtype=torch.bool)
    alive[0, 5] = False
    row, bias, column = (
        part.cut.spread(alive, shape)
        for part, shape in zip(unit.parts, map(torch.Size, [(32, 16), (32,), (16, 32)]), strict=True)
    )
    assert (row.all(1) == alive[0]).all()
    assert (bias == alive[0]).all()
    assert (column.all(0) == alive[0]).all()
    assert (row.sum(), column.sum()) == (31 * 16, 31 * 16)


def test_layers_are_found_by_name_or_refused():
    model = model_of()
    assert [unit.name for unit in structures(model, ["blocks.1.*"])] == ["blocks.1.attn.heads", "blocks.1.mlp.neurons"]
    with pytest.raises(ValueError, match=r"No prunable layer is called blocks\.7\.mlp; the model has blocks\.0\.mlp"):
        neurons(model, ["blocks.7.mlp"])
    with pytest.raises(ValueError, match="Linear has no timm Attention layer, so there are no heads to prune"):
        heads(nn.Linear(2, 2))


def test_a_model_without_biases_has_heads_too():
    assert len(heads(model_of(qkv_bias=False))[0].parts) == 2


# ---- every rule, pool and schedule --------------------------------------------------------------


def made(method: str, model: nn.Module, cut, **extra):
    keywords = {"steps": STEPS, "interval": 4, "batches": 3, "rounds": 2} | extra
    makers = {
        "omp": [],
        "gmp": ["steps", "interval"],
        "taylor": ["steps", "batches", "rounds"],
        "svite": ["steps", "interval"],
        "set": ["steps", "interval"],
        "rigl": ["steps", "interval"],
        "l1": ["steps", "interval"],
        "snip": [],
    }
    return getattr(methods, method)(model, 0.5, cut=cut, **{name: keywords[name] for name in makers[method]}, **extra)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("cut", sorted(CUTS))
@pytest.mark.parametrize("method", ["omp", "gmp", "taylor", "svite", "set", "rigl", "l1", "snip"])
def test_every_method_ends_with_half_of_the_members(method, cut, optimizer):
    model = model_of()
    if method == "snip":
        backward(model)
    sparsifier = made(method, model, CUTS[cut])
    for _ in train(model, OPTIMIZERS[optimizer](model), sparsifier):
        assert dead_are_zero(sparsifier)
    for kind in {unit.kind for unit in sparsifier.units.values()}:
        units = [unit for unit in sparsifier.units.values() if unit.kind == kind]
        assert sum(counts(sparsifier)[unit.name] for unit in units) == sum(unit.size for unit in units) / 2


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_state_of_dead_heads_and_neurons_is_zero_whatever_the_optimizer(optimizer):
    model = model_of()
    made_optimizer = OPTIMIZERS[optimizer](model)
    sparsifier = methods.s2vite(model, 0.5, 0.5, STEPS, interval=4)
    for _ in train(model, made_optimizer, sparsifier):
        for name, weight in sparsifier.weights.items():
            state = [value for value in made_optimizer.state[weight].values() if torch.is_tensor(value)]
            for value in state:
                assert value.shape != weight.shape or not value[~sparsifier.masks[name]].any()


def test_heads_compete_across_layers_but_no_layer_loses_its_last_while_training():
    model = model_of()
    with torch.no_grad():
        model.blocks[1].attn.proj.weight.mul_(1e-3)
        model.blocks[1].attn.qkv.weight.mul_(1e-3)
    sparsifier = made("gmp", model, heads, pool=global_allocation)
    list(train(model, adamw(model), sparsifier))
    assert sum(counts(sparsifier).values()) == 4
    assert min(counts(sparsifier).values()) == 1


def test_pruning_every_head_of_a_block_at_once_is_refused_unless_asked_for():
    model = model_of()
    with torch.no_grad():
        for parameter in model.blocks[1].attn.parameters():
            parameter.mul_(1e-3)
    with pytest.raises(ValueError, match=r"leave nothing alive in blocks\.1\.attn\.heads; ask for a higher one"):
        methods.omp(model, 0.5, cut=heads)
    sparsifier = methods.omp(model, 0.5, cut=heads, pool=with_branches)
    assert counts(sparsifier) == {"blocks.0.attn.heads": 4, "blocks.1.attn.heads": 0}


def test_pruning_every_neuron_of_a_block_at_once_is_refused_too():
    model = model_of()
    with torch.no_grad():
        for parameter in model.blocks[1].mlp.parameters():
            parameter.mul_(1e-6)
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.neurons; .*pool=svite\.with_branches"):
        methods.omp(model, 0.5, cut=neurons)


@pytest.mark.parametrize("method", ["rigl", "svite", "set"])
def test_members_of_a_branch_that_is_empty_may_be_born(method):
    model = model_of()
    sparsifier = getattr(methods, method)(model, 0.15, STEPS, interval=4, cut=heads, pool=with_branches)
    assert 0 in counts(sparsifier).values()
    losses = list(train(model, adamw(model), sparsifier))
    assert all(map(math.isfinite, losses))


def test_gathered_layers_are_refused_by_name():
    model = model_of()
    sparsifier = methods.vtp(model, 0.5, STEPS)
    for _ in train(model, adamw(model), sparsifier):
        pass
    with pytest.raises(ValueError, match=r"blocks\.0\.attn reads gathered features; its heads"):
        heads(gather_inputs(fold(model)))


def test_too_few_members_are_refused_by_name():
    with pytest.raises(ValueError, match=r"nothing alive in blocks\.0\.attn\.heads"):
        methods.s2vite(model_of(), 0.1, 0.5, STEPS)
    with pytest.raises(ValueError, match=r"neurons is 1\.5"):
        methods.s2vite(model_of(), 0.5, 1.5, STEPS)
    with pytest.raises(ValueError, match=r"A density of 0\.1 leaves none of 4 members alive"):
        with_branches(heads(vit(num_heads=4)), 0.1)


# ---- births -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_what_never_lived_is_born(optimizer):
    model = model_of(num_heads=8)
    sparsifier = methods.s2vite(model, 0.5, 0.5, 2 * STEPS, interval=2)
    first = {name: alive.clone() for name, alive in sparsifier.alive.items()}
    list(train(model, OPTIMIZERS[optimizer](model), sparsifier, range(2 * STEPS)))
    replaced = {name: int((alive & ~first[name]).sum()) for name, alive in sparsifier.alive.items()}
    assert counts(sparsifier) == {name: int(alive.sum()) for name, alive in first.items()}
    assert min(count for name, count in replaced.items() if "neurons" in name) >= 3
    assert sum(count for name, count in replaced.items() if "heads" in name) >= 1
    assert (sparsifier.summary().ever > 0.6).all()  # the first topology is half of the members


def test_the_function_does_not_jump_when_candidates_are_reinitialised_or_grow():
    model = model_of()
    sparsifier = methods.s2vite(model, 0.5, 0.5, 100, interval=1, fraction=1.0)
    images = batch(0)[0]
    sparsifier.step = 1
    before = model.eval()(images)
    candidates.reinitialise(sparsifier.candidates, sparsifier.weights, sparsifier.masks, seed=0, update=1)
    assert torch.equal(model(images), before)
    assert all(bool(model.get_parameter(f"blocks.{i}.mlp.fc1.weight").any(1).all()) for i in (0, 1))
    sparsifier.hold({name: torch.ones_like(alive) for name, alive in sparsifier.alive.items()})
    sparsifier.mask_weights()
    assert torch.equal(model(images), before)


def test_candidates_are_a_function_of_seed_and_step_and_as_long_as_the_living():
    drawn = {}
    for seed, update in ((0, 1), (0, 1), (0, 2), (1, 1)):
        model = model_of()
        sparsifier = methods.s2vite(model, 0.5, 0.5, 100)
        candidates.reinitialise(sparsifier.candidates, sparsifier.weights, sparsifier.masks, seed, update)
        weight, mask = model.blocks[0].mlp.fc1.weight.detach(), sparsifier.masks["blocks.0.mlp.fc1.weight"]
        assert weight[~mask].std() == pytest.approx(float(weight[mask].std()), rel=0.15)
        assert not model.blocks[0].mlp.fc1.bias[~sparsifier.masks["blocks.0.mlp.fc1.bias"]].any()
        if (seed, update) in drawn:
            assert torch.equal(drawn[seed, update], weight)
        drawn[seed, update] = weight.clone()
    assert len({float(value.sum()) for value in drawn.values()}) == 3


def test_the_growth_score_is_the_gradient_that_the_candidate_would_have():
    model = model_of()
    sparsifier = methods.s2vite(model, 0.5, 0.5, STEPS, interval=2)
    optimizer = adamw(model)
    list(train(model, optimizer, sparsifier, range(2)))
    asked = copy.deepcopy(model)
    alive = sparsifier.alive["blocks.1.mlp.neurons"][0]
    optimizer.zero_grad()
    backward(model, 2)
    score = sparsifier.scoring.now(gradient, "blocks.1.mlp.neurons", 2)[0]
    incoming = model.blocks[1].mlp.fc1.weight.detach().clone()
    with torch.no_grad():
        for name, mask in sparsifier.masks.items():  # the same weights by hand in a copy that knows no sparsifier
            parameter, candidate = asked.get_parameter(name), model.get_parameter(name)
            parameter.copy_(torch.where(mask, parameter, candidate))
    asked.zero_grad()
    backward(asked, 2)
    assert bool(incoming[~alive].any(1).all())
    assert torch.allclose(score, asked.blocks[1].mlp.fc2.weight.grad.abs().sum(0))
    assert float(score[~alive].min()) > 0


def test_a_dead_neuron_that_is_no_candidate_has_no_gradient_at_all():
    model = model_of()
    sparsifier = methods.s2vite(model, 0.5, 0.5, STEPS)
    backward(model)
    for name, weight in sparsifier.weights.items():
        assert not weight.grad[~sparsifier.masks[name]].any()


def test_newborns_learn():
    model = model_of()
    optimizer, sparsifier = adamw(model), methods.s2vite(model, 0.5, 0.5, STEPS, interval=2, until=0.2)
    before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    list(train(model, optimizer, sparsifier, range(4)))
    for i in (0, 1):
        name = f"blocks.{i}.mlp.fc2.weight"
        born = sparsifier.masks[name] & ~before[name]
        assert born.any()
        assert (model.get_parameter(name)[born] != 0).all()


def test_between_steps_nothing_waits_in_the_model_and_evaluation_lays_nothing():
    model = model_of()
    optimizer, sparsifier = adamw(model), methods.s2vite(model, 0.5, 0.5, STEPS, interval=1)
    for _ in train(model, optimizer, sparsifier, range(3)):
        assert dead_are_zero(sparsifier)
        model.eval()(batch(9)[0])
        model.train()
        with torch.no_grad():
            model(batch(9)[0])
        assert dead_are_zero(sparsifier)


def test_accumulated_backward_passes_see_the_same_candidates():
    model = model_of()
    optimizer, sparsifier = adamw(model), methods.s2vite(model, 0.5, 0.5, STEPS, interval=2)
    list(train(model, optimizer, sparsifier, range(2)))
    backward(model, 2)
    laid = model.blocks[0].attn.qkv.weight.detach().clone()
    backward(model, 3)
    assert torch.equal(model.blocks[0].attn.qkv.weight, laid)


def test_a_copy_takes_no_part_and_names_stay_timms():
    model = model_of()
    names = list(model.state_dict())
    sparsifier = methods.s2vite(model, 0.5, 0.5, STEPS, interval=1)
    narrow(model, sparsifier)
    sparsifier.step = 1
    average = copy.deepcopy(model).train()
    average(batch(0)[0])
    assert not any(average.get_parameter(name)[~mask].any() for name, mask in sparsifier.masks.items())
    assert list(model.state_dict()) == list(average.state_dict()) == names
    sparsifier.apply(average)


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one():
    def fresh():
        model = model_of()
        sparsifier = methods.s2vite(model, 0.5, 0.5, STEPS, interval=3, batches=2)
        narrow(model, sparsifier)
        return model, adamw(model), sparsifier

    whole = fresh()
    list(train(*whole))
    for stop in range(1, STEPS, 3):
        first, second = fresh(), fresh()
        list(train(*first, range(stop)))
        second[0].load_state_dict(first[0].state_dict())
        second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
        second[2].load_state_dict(first[2].state_dict())
        list(train(*second, range(stop, STEPS)))
        assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True))


# ---- training on what lives ---------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"qk_norm": True, "init_values": 1.0}, {"qkv_bias": False}])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_the_narrow_run_has_the_numbers_of_the_masked_run(optimizer, arguments):
    ends = []
    for narrowed in (False, True):
        model = model_of(**arguments).double()
        made_optimizer = OPTIMIZERS[optimizer](model)
        sparsifier = methods.s2vite(model, 0.5, 0.25, STEPS, interval=4)
        if narrowed:
            narrow(model, sparsifier)
        losses = [float(loss) for loss in train_double(model, made_optimizer, sparsifier)]
        ends.append((losses, sparsifier.alive, [p.detach() for p in model.parameters()]))
    (losses, alive, weights), (narrow_losses, narrow_alive, narrow_weights) = ends
    tolerance = 1e-2 if optimizer == "muon" else 1e-9  # Muon iterates in bfloat16
    assert narrow_losses == pytest.approx(losses, rel=tolerance)
    if optimizer != "muon":
        assert all(torch.equal(alive[name], narrow_alive[name]) for name in alive)
        assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(weights, narrow_weights, strict=True))


def train_double(model, optimizer, sparsifier):
    for step in range(STEPS):
        optimizer.zero_grad()
        images, labels = batch(step)
        loss = nn.functional.cross_entropy(model(images.double()), labels)
        loss.backward()
        yield loss.detach()
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()


def test_dead_members_cost_no_work_between_updates():
    model = model_of()
    sparsifier = methods.s2vite(model, 0.5, 0.25, STEPS, interval=4)
    handle = narrow(model, sparsifier)
    sizes = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
        for layer in (model.blocks[0].attn.qkv, model.blocks[0].mlp.fc1)
    ]
    model(batch(0)[0])
    assert sizes == [24, 8]
    sparsifier.step = 4  # here births are decided
    model(batch(0)[0])
    assert sizes[2:] == [48, 32]
    sparsifier.step = 5
    model.eval()(batch(0)[0])
    assert sizes[4:] == [48, 32]
    handle.remove()
    model.train()(batch(0)[0])
    assert sizes[6:] == [48, 32]
    assert len(hooks) == 2
    assert (model.blocks[0].attn.num_heads, model.blocks[0].attn.attn_dim) == (4, 16)


def test_a_layer_is_whole_again_after_a_forward_pass_that_failed():
    model = model_of()
    sparsifier = methods.s2vite(model, 0.5, 0.25, STEPS)
    narrow(model, sparsifier)
    breaks = model.blocks[0].attn.proj.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(batch(0)[0])
    breaks.remove()
    assert "weight" not in model.blocks[0].attn.qkv.__dict__
    assert model.blocks[0].attn.num_heads == 4


@pytest.mark.parametrize("arguments", [{"scale_attn_norm": True}, {"scale_mlp_norm": True}])
def test_layers_with_a_norm_between_their_linear_layers_run_whole(arguments):
    model = model_of(**arguments)
    sparsifier = methods.s2vite(model, 0.5, 0.25, STEPS, interval=4)
    assert len(narrow(model, sparsifier).handles) == 4  # of eight: the other kind of layer, in two blocks
    assert all(map(math.isfinite, train(model, adamw(model), sparsifier)))


def test_elements_leave_narrow_nothing_to_do():
    model = model_of()
    assert narrow(model, methods.omp(model, 0.5, cut=elements)).handles == []
    assert narrow(model, methods.omp(model, 0.5, cut=heads, pool=uniform)).handles
