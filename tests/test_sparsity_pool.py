"""Who competes with whom: densities of layers, against the published numbers, and what is refused."""

import hypothesis.strategies as st
import pytest
import timm
import torch
from hypothesis import assume, given, settings
from tiny import vit
from torch import nn

from svite.methods import omp
from svite.sparsity.cut import Part, Unit, element, fan_in
from svite.sparsity.layers import units, weights
from svite.sparsity.pool import erk, global_allocation, uniform

# The reference code on ViT-B/16 with 10 classes: density, then those of each kind of layer, then all non-zeros.
VIT_BASE = [
    (0.1, 0.0785, 0.1001, 0.1501, 0.0938, 1.0, 8.83e6),
    (0.3, 0.2356, 0.3004, 0.4506, 0.2816, 1.0, 25.93e6),
    (0.5, 0.3926, 0.5007, 0.7511, 0.4694, 1.0, 43.04e6),
    (0.7, 0.5535, 0.7059, 1.0, 0.6618, 1.0, 60.15e6),
    (0.9, 0.7329, 0.9346, 1.0, 0.8762, 1.0, 77.25e6),
]
KINDS = ("patch_embed.proj", "attn.qkv", "attn.proj", "mlp.fc1", "head")


@pytest.fixture(scope="module")
def base() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224", num_classes=10)


@pytest.mark.parametrize(("density", "patch", "qkv", "proj", "fc", "head", "nonzero"), VIT_BASE)
def test_erk_gives_the_densities_of_the_reference_code(base, density, patch, qkv, proj, fc, head, nonzero):
    found = units(base)
    assert sum(unit.size for unit in found) == 85_532_160
    pools = erk(found, density)
    expected = dict(zip(KINDS, (patch, qkv, proj, fc, head), strict=True)) | {"mlp.fc2": fc}
    for pool in pools:
        kind = next(kind for kind in expected if kind in pool.units[0].name)
        assert round(pool.density, 4) == expected[kind], pool.units[0].name
    unmasked = sum(p.numel() for p in base.parameters()) - 85_532_160
    kept = sum(pool.keep(pool.density) for pool in pools)
    assert abs(kept - density * 85_532_160) <= len(pools)
    assert round((kept + unmasked) / 1e6, 2) == pytest.approx(nonzero / 1e6)


def layers(shapes: list[tuple[int, int]]) -> list[Unit]:
    return [
        Unit(f"{i}.weight", (Part(f"{i}.weight", element()),), torch.Size(shape), 1, shape[0] * shape[1])
        for i, shape in enumerate(shapes)
    ]


SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.floats(0.01, 1), st.sampled_from([uniform, erk, global_allocation]))
def test_every_allocation_holds_its_count_or_names_the_empty_layers(shapes, density, allocate):
    found = layers(shapes)
    try:
        pools = allocate(found, density)
    except ValueError as error:
        assume("leaves nothing alive in" not in str(error))
        raise
    kept = sum(pool.keep(pool.density) for pool in pools)
    assert all(0 < pool.density <= 1 + 1e-12 for pool in pools)
    assert [unit for pool in pools for unit in pool.units] == found
    assert abs(kept - density * sum(unit.size for unit in found)) <= 0.5 * len(pools) + 1e-6
    if allocate is uniform:
        assert [pool.density for pool in pools] == [density] * len(found)


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.floats(0.2, 0.9))
def test_erk_densities_are_in_proportion_to_the_ratio_except_those_at_one(shapes, density):
    found = layers([(height + 4, width + 4) for height, width in shapes])
    scales = [
        pool.density / (sum(pool.units[0].shape) / pool.units[0].size)
        for pool in erk(found, density)
        if pool.density < 1
    ]
    assert scales == pytest.approx([max(scales, default=0)] * len(scales))


@pytest.mark.parametrize("allocate", [uniform, erk, global_allocation])
@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan")])
def test_a_density_outside_zero_to_one_is_refused(allocate, density):
    with pytest.raises(ValueError, match=f"density is {density}; it must lie above 0 and at most at 1"):
        allocate(units(vit()), density)


def test_a_density_that_empties_a_layer_names_it():
    with pytest.raises(ValueError, match=r"nothing alive in head\.weight; ask for a higher"):
        uniform(units(vit()), 0.004)
    with pytest.raises(ValueError, match=r"nothing alive in patch_embed\.proj\.weight, "):
        global_allocation(units(vit()), 0.0001)


def test_arenas_cannot_compete_across_layers():
    with pytest.raises(ValueError, match=r"patch_embed\.proj\.weight is cut into arenas"):
        global_allocation(units(vit(), cut=fan_in()), 0.5)


# Finding layers


def test_every_linear_and_convolution_weight_is_found():
    names = [
        *("patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"),
        "head",
    ]
    assert list(weights(vit())) == [f"{name}.weight" for name in names]
    assert list(weights(vit(), ["blocks.*.mlp.*", "head"])) == [
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
    ]


def test_a_pattern_that_matches_nothing_is_an_error_that_says_what_there_is():
    with pytest.raises(ValueError, match=r"called blocks\.7\.\*, tail; the model has patch_embed\.proj, .*head\.$"):
        weights(vit(), ["head", "blocks.7.*", "tail"])
    with pytest.raises(ValueError, match="No prunable layer is called nothing"):
        weights(vit(), [])


def test_a_tied_weight_is_one_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert [unit.name for unit in units(model)] == ["0.weight"]
    assert omp(model, 0.5).density == 0.5


def test_a_model_without_a_prunable_layer_is_an_error():
    with pytest.raises(ValueError, match="Sequential has no prunable layer"):
        weights(nn.Sequential(nn.LayerNorm(4), nn.GELU()))
