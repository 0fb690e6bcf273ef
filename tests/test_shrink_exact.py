"""A model without its dead heads, neurons, branches and inputs computes what the masked one does."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import backward, same, vit, weights_of
from tiny_cuts import (
    DEPTH,
    HEADS,
    NEURONS,
    VARIANTS,
    all_alive,
    dead_inputs,
    dead_mlp,
    difference,
    images_of,
    masked,
    model_of,
    sizes,
    some_dead,
)
from torch import Tensor, nn

from svite import methods
from svite.sparsity.pool import uniform
from svite.vit.gather import gather_inputs
from svite.vit.parts import Select, Zero
from svite.vit.shrink import shrink
from svite.vit.verify import verify

# Heads and neurons


@pytest.mark.parametrize("by", ["masks", "zeros"])
@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
def test_the_shrunk_model_equals_the_masked_one_and_is_smaller(arguments, by):
    model = model_of(**arguments)
    whole = deepcopy(model)
    sparsifier = masked(model, some_dead(model))
    before = weights_of(model)
    small = shrink(model, sparsifier if by == "masks" else None)
    assert same(before, weights_of(model))
    assert [block.attn.num_heads for block in small.blocks] == [2, 3]
    assert [block.mlp.fc1.out_features for block in small.blocks] == [NEURONS - 30, NEURONS - 5]
    if model.attn_pool is not None:
        assert small.attn_pool.mlp.fc1.out_features == NEURONS // 2
        assert small.attn_pool.num_heads == HEADS
    assert difference(model, whole) > 0.01  # the masks do change the model
    assert difference(model, small) < 1e-5
    exact = deepcopy(model).double()
    assert difference(exact, shrink(exact, sparsifier if by == "masks" else None)) < 1e-10


def test_the_value_bias_of_a_dead_head_is_not_lost():
    model = model_of().double()
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias.mul_(50)
    sparsifier = masked(model, some_dead(model))
    small = shrink(model, sparsifier)
    assert difference(model, small) < 1e-10
    with torch.no_grad():
        small.blocks[0].attn.proj.bias.copy_(model.blocks[0].attn.proj.bias)
    assert difference(model, small) > 0.1


def test_a_bias_is_made_only_where_something_is_folded():
    with_values = model_of(proj_bias=False)
    small = shrink(with_values, masked(with_values, some_dead(with_values)))
    assert small.blocks[0].attn.proj.bias is not None
    assert small.blocks[0].mlp.fc2.bias is None  # GELU(0) = 0
    without = model_of(qkv_bias=False, proj_bias=False)
    small = shrink(without, masked(without, some_dead(without)))
    assert small.blocks[0].attn.proj.bias is None


def by_hand(model: nn.Module, masks: dict[str, Tensor], block: int) -> tuple[int, int]:
    """How many heads and neurons live: those with a feature that is both made and read."""
    qkv, proj, fc1, fc2 = (
        masks[f"blocks.{block}.{name}.weight"] for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    )
    features = [bool(qkv[2 * 16 + f].any()) and bool(proj[:, f].any()) for f in range(16)]
    heads = sum(any(features[head * 4 : head * 4 + 4]) for head in range(HEADS))
    return heads, sum(bool(fc1[n].any()) and bool(fc2[:, n].any()) for n in range(NEURONS))


def seen_through_gamma(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """A row of proj or fc2 that LayerScale multiplies by zero reads nothing."""
    pairs = {
        f"blocks.{b}.{layer}.weight": f"blocks.{b}.{ls}.gamma"
        for b in range(DEPTH)
        for layer, ls in (("attn.proj", "ls1"), ("mlp.fc2", "ls2"))
    }
    return masks | {weight: masks[weight] & masks[gamma][:, None] for weight, gamma in pairs.items()}


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.5), st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_topology_shrinks_exactly(seed, density, by_masks):
    torch.manual_seed(seed)
    model = model_of(init_values=0.1).double()
    masks = all_alive(model)
    for name, mask in masks.items():
        if name.startswith("blocks") and "norm" not in name:
            coarse = torch.rand(mask.shape[-1]) if mask.dim() == 1 else torch.rand(len(mask), 1)
            masks[name] = torch.minimum(torch.rand(mask.shape), coarse) < density
    for name in ("blocks.0.ls1.gamma", "blocks.1.ls2.gamma"):
        masks[name][0] = True
    sparsifier = masked(model, masks)
    expected = [by_hand(model, seen_through_gamma(masks), block) for block in range(DEPTH)]
    small = shrink(model, sparsifier if by_masks else None, branches=True)
    assert [sizes(block) for block in small.blocks] == expected
    assert difference(model, small) < 1e-10


def test_what_an_unstructured_method_emptied_goes():
    model = vit(depth=2)
    sparsifier = methods.omp(model, 0.02, pool=uniform)
    small = shrink(model.eval(), sparsifier, branches=True)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
    verify(model, small, images_of(torch.float32))


def test_a_newborn_zero_is_alive():
    model = model_of()
    masks = all_alive(model)
    masks["blocks.0.mlp.fc2.weight"][:, :8] = False
    sparsifier = masked(model, masks)
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight[:, 8:16] = 0
        model.blocks[0].attn.proj.weight[:, :4] = 0
    assert sizes(shrink(model, sparsifier).blocks[0]) == (HEADS, NEURONS - 8)
    assert sizes(shrink(model).blocks[0]) == (HEADS - 1, NEURONS - 16)
    unnamed = SimpleNamespace(masks={"head.weight": masks["head.weight"]})
    assert sizes(shrink(model, unnamed).blocks[0]) == (HEADS, NEURONS)


def test_nothing_dead_is_an_equal_copy():
    model = model_of(global_pool="map", class_token=False)
    small = shrink(model)
    assert same(weights_of(model), weights_of(small))
    assert not {*model.parameters()} & {*small.parameters()}
    assert verify(model, small, images_of(torch.float32)) == 0


def test_a_shrunk_model_shrinks_again():
    model = model_of().double()
    once = shrink(model, masked(model, some_dead(model) | dead_mlp()), branches=True)
    with torch.no_grad():
        once.blocks[1].attn.proj.weight[:, :4] = 0
    twice = shrink(once)
    assert [sizes(block) for block in twice.blocks] == [(2, 0), (2, NEURONS - 5)]
    assert difference(once, twice) < 1e-10


# Branches

BRANCHES = {
    "no values": ("attn.qkv.weight", "attn"),
    "not read": ("attn.proj.weight", "attn"),
    "no inputs": ("mlp.fc1.weight", "mlp"),
    "no outputs": ("mlp.fc2.weight", "mlp"),
}


@pytest.mark.parametrize("variant", ["plain", "layer scale", "no bias after", "post norm"])
@pytest.mark.parametrize(("weight", "child"), BRANCHES.values(), ids=BRANCHES)
def test_a_dead_branch_leaves_its_constant(weight, child, variant):
    model = model_of(**VARIANTS[variant]).double()
    name = f"blocks.1.{weight}"
    masks = some_dead(model)
    masks[name][:] = False
    sparsifier = masked(model, masks)
    with pytest.raises(ValueError, match=rf"Nothing is alive in blocks\.1\.{child}; pass `branches=True`"):
        shrink(model, sparsifier)
    small = shrink(model, sparsifier, branches=True)
    assert isinstance(getattr(small.blocks[1], child), Zero)
    assert difference(model, small) < 1e-10
    backward(small.float().train())
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.parametrize("sparse", [True, False])
def test_a_branch_dies_with_its_layer_scale(sparse):
    model = model_of(init_values=0.1).double()
    gamma = {"blocks.0.ls1.gamma": torch.zeros(16, dtype=torch.bool)}
    sparsifier = masked(model, gamma)
    with pytest.raises(ValueError, match=r"Nothing is alive in blocks\.0\.attn;"):
        shrink(model, sparsifier if sparse else None)
    small = shrink(model, sparsifier if sparse else None, branches=True)
    assert isinstance(small.blocks[0].attn, Zero)
    assert small.blocks[0].attn.bias is None
    assert difference(model, small) < 1e-10


def test_the_mlp_of_an_attention_pool_can_go():
    model = model_of(global_pool="map", class_token=False).double()
    sparsifier = masked(model, {"attn_pool.mlp.fc2.weight": torch.zeros(16, NEURONS, dtype=torch.bool)})
    small = shrink(model, sparsifier, branches=True)
    assert isinstance(small.attn_pool.mlp, Zero)
    assert difference(model, small) < 1e-10


# Gathered inputs


@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
def test_features_that_no_weight_reads_are_gathered_away(arguments):
    model = model_of(**arguments).double()
    sparsifier = masked(model, dead_inputs())
    for small in (gather_inputs(model, sparsifier), gather_inputs(shrink(model, sparsifier))):
        attention, mlp = small.blocks[1].attn, small.blocks[1].mlp
        for narrow in (attention.qkv, attention.proj, mlp.fc1):
            assert [type(part) for part in narrow] == [Select, nn.Linear]
            assert narrow[0].index.tolist() == [f for f in range(16) if f not in (3, 9)]
            assert narrow[1].in_features == 14
        assert all(type(part) is nn.Linear for part in (mlp.fc2, small.blocks[0].attn.qkv, small.head))
        assert difference(model, small) < 1e-10
        with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv is a \S+\.Sequential, which can't be cut"):
            shrink(small)


def test_a_layer_that_reads_nothing_at_all_is_its_bias():
    model = model_of().double()
    small = gather_inputs(model, masked(model, {"blocks.0.mlp.fc1.weight": dead_mlp()["blocks.0.mlp.fc1.weight"]}))
    assert small.blocks[0].mlp.fc1[1].in_features == 0
    assert difference(model, small) < 1e-10


def test_gathering_waits_for_newborn_zeros():
    model = model_of()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[:, :5] = 0
    kept = gather_inputs(model, SimpleNamespace(masks=all_alive(model)))
    assert type(kept.blocks[0].mlp.fc1) is nn.Linear
    assert gather_inputs(model).blocks[0].mlp.fc1[1].in_features == 11
