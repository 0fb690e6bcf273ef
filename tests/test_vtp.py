"""VTP: gates, their threshold, folding, and the slim model that is left."""

import copy

import pytest
import torch
from timm.layers import SwiGLU
from tiny import OPTIMIZERS, STEPS, adamw, train, vit
from torch import nn

import svite
from svite import methods
from svite.study.compact import finished
from svite.vit.gates import SITES, add_gates, fold, gates, is_gated
from svite.vit.parts import Select
from svite.vit.shrink import shrink

DEEP = {"depth": 2, "num_heads": 4, "mlp_ratio": 2.0}
IMAGES = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def gated(**arguments: object) -> nn.Module:
    """A model with gates of random values, some of them zero."""
    model = vit(**(DEEP | arguments)).double().eval()
    add_gates(model)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            values = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(values * (values > 0.4))
    return model


def test_gates_of_one_change_nothing():
    model = vit(**DEEP).eval()
    before = model(IMAGES)
    units = gates(model)
    add_gates(model)
    assert [unit.name for unit in units] == [f"blocks.{i}.{site}.gate" for i in (0, 1) for site in SITES]
    assert [unit.members for unit in units] == [16, 16, 16, 32] * 2
    assert torch.equal(model(IMAGES), before)


def test_a_gate_multiplies_the_features_that_its_layer_reads():
    model = gated()
    layer, features = model.blocks[0].mlp.fc2, torch.randn(2, 32, dtype=torch.float64)
    assert torch.equal(layer(features), nn.functional.linear(features * layer.gate, layer.weight, layer.bias))


@pytest.mark.parametrize("arguments", [{}, {"qk_norm": True, "init_values": 0.5}, {"reg_tokens": 2}])
def test_folded_and_slim_logits_are_the_gated_ones(arguments):
    model = gated(**arguments)
    images = IMAGES.double()
    folded = fold(model)
    assert is_gated(model)
    assert not is_gated(folded)
    assert list(folded.state_dict()) == list(vit(**(DEEP | arguments)).state_dict())
    assert torch.allclose(folded(images), model(images), atol=1e-12)
    slim, _ = finished(model, methods.omp(vit(), 0.5))
    assert torch.allclose(slim.eval()(images), model(images), atol=1e-12)
    assert isinstance(slim.blocks[0].attn.qkv[0], Select)
    assert slim.blocks[0].attn.qkv[1].in_features == int(model.blocks[0].attn.qkv.gate.count_nonzero())
    assert slim.blocks[0].mlp.fc2.in_features == int(model.blocks[0].mlp.fc2.gate.count_nonzero())


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_one_threshold_over_all_gates_leaves_the_asked_rate(optimizer):
    model = vit(**DEEP)
    sparsifier = methods.vtp(model, 0.6, STEPS, interval=4, strength=1.0)
    made = OPTIMIZERS[optimizer](model)
    magnitudes = None
    for _ in train(model, made, sparsifier):
        if sparsifier.step == STEPS // 2 + 1:
            magnitudes = {name: alive.clone() for name, alive in sparsifier.alive.items()}
    members = sum(unit.size for unit in sparsifier.units.values())
    assert sum(int(alive.sum()) for alive in sparsifier.alive.values()) == int(0.6 * members + 0.5)
    assert all(torch.equal(magnitudes[name], alive) for name, alive in sparsifier.alive.items())
    assert not any(sparsifier.weights[name][~mask].any() for name, mask in sparsifier.masks.items())
    small, masked = finished(model, sparsifier)
    assert masked is None
    svite.verify(model, small, IMAGES)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in vit(**DEEP).parameters())


def test_the_slim_model_trains_further():
    model = vit(**DEEP)
    sparsifier = methods.vtp(model, 0.6, STEPS, interval=4)
    list(train(model, adamw(model), sparsifier))
    small = finished(model, sparsifier)[0].train()
    made = adamw(small)
    losses = [next(train(small, made, None, range(1))) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_a_copy_has_gates_of_its_own():
    model = gated()
    twin = copy.deepcopy(model)
    twin.blocks[0].mlp.fc2.gate.data.zero_()
    assert not torch.equal(twin(IMAGES.double()), model(IMAGES.double()))


def test_a_gated_model_is_not_shrunk_before_it_is_folded():
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv has a gate; svite\.vit\.gates\.fold multiplies it"):
        shrink(gated())


def test_what_cannot_be_gated_is_refused():
    with pytest.raises(ValueError, match="Linear has no timm Block, so there is nothing to gate"):
        add_gates(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv is no plain linear layer, or has a gate already"):
        add_gates(gated())
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.fc1 is no plain linear layer"):
        add_gates(vit(mlp_layer=SwiGLU))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"density": 2}, "density is 2"),
        ({"strength": -1}, "strength is -1"),
        ({"until": 1.0}, "`until` is 1.0 of 24 steps"),
    ],
)
def test_what_is_refused_changes_nothing(arguments, complaint):
    model = vit()
    with pytest.raises(ValueError, match=complaint):
        methods.vtp(model, **({"density": 0.5, "steps": STEPS} | arguments))
    assert not is_gated(model)


def test_gates_that_the_optimizer_does_not_train_are_named():
    model = vit()
    made = adamw(model)
    sparsifier = methods.vtp(model, 0.5, STEPS)
    with pytest.raises(ValueError, match=r"does not train blocks\.0\.attn\.qkv\.gate \(and 3 more\), which"):
        next(train(model, made, sparsifier))
