"""A shrunk model equals the masked one, is smaller, and is timm's; what can't be cut exactly is refused by name."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Attention, DiffAttention, Mlp, SwiGLU
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock
from tiny import CLASSES, VIT, adamw, backward, batch, logits, same, vit, weights_of
from torch import Tensor, nn

from svite import methods
from svite.sparsity.layers import named_parameters
from svite.sparsity.pool import uniform
from svite.tokens import Attentive, select
from svite.vit.gather import gather_inputs
from svite.vit.parts import Select, Zero
from svite.vit.shrink import shrink
from svite.vit.structure import structures
from svite.vit.verify import verify

HEADS, NEURONS, DEPTH = 4, 64, 2
VARIANTS = {
    "plain": {},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
    "registers": {"reg_tokens": 3},
    "layer scale": {"init_values": 0.1},
    "qk norm": {"qk_norm": True},
    "average pool": {"class_token": False, "global_pool": "avg"},
    "attention pool": {"class_token": False, "global_pool": "map"},
    "no qkv bias": {"qkv_bias": False},
    "no bias after": {"proj_bias": False},
    "no bias": {"qkv_bias": False, "proj_bias": False},
    "another activation": {"act_layer": "sigmoid"},
    "post norm": {"block_fn": ResPostBlock},
}


def model_of(name: str = "vit_tiny_patch16_224", **arguments: object) -> nn.Module:
    """A tiny model in eval mode, every parameter of it, the biases too, far from zero."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**VIT, "depth": DEPTH, "num_heads": HEADS, **arguments}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def all_alive(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in named_parameters(model).items()}


def masked(model: nn.Module, masks: dict[str, Tensor]) -> SimpleNamespace:
    """Zero what is dead in a model; what `shrink` needs of a sparsifier."""
    with torch.no_grad():
        for name, weight in named_parameters(model).items():
            if name in masks:
                weight.mul_(masks[name])
    return SimpleNamespace(masks=masks)


def values(mask: Tensor) -> Tensor:
    """The rows of qkv that make the values, as one slice a head."""
    return mask[-len(mask) // 3 :].view(HEADS, -1, *mask.shape[1:])


def reads(mask: Tensor) -> Tensor:
    """The columns of proj, as one slice a head."""
    return mask.view(len(mask), HEADS, -1)


def some_dead(model: nn.Module) -> dict[str, Tensor]:
    """Heads and neurons that died in every way there is: not read, not made, half and half."""
    masks = all_alive(model)
    values(masks["blocks.0.attn.qkv.weight"])[0] = False
    reads(masks["blocks.0.attn.proj.weight"])[:, 2] = False
    values(masks["blocks.1.attn.qkv.weight"])[3, :2] = False
    reads(masks["blocks.1.attn.proj.weight"])[:, 3, 2:] = False
    masks["blocks.0.mlp.fc1.weight"][:20] = False
    masks["blocks.0.mlp.fc2.weight"][:, 15:30] = False
    masks["blocks.1.mlp.fc2.weight"][:, -5:] = False
    if model.attn_pool is not None:
        masks["attn_pool.mlp.fc1.weight"][::2] = False
        values(masks["attn_pool.kv.weight"].repeat(2, 1)[: 3 * 16])[1] = False
    return masks


def images_of(dtype: torch.dtype = torch.float64) -> Tensor:
    return batch(0, 4)[0].to(dtype)


def difference(model: nn.Module, small: nn.Module) -> float:
    """Between eval outputs on the same images, relative to the largest."""
    images = images_of(next(model.parameters()).dtype)
    with torch.no_grad():
        expected, found = logits(deepcopy(model).eval(), images), logits(deepcopy(small).eval(), images)
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1))


# Equality


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


def seen_through_gamma(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """A row of proj or fc2 that LayerScale multiplies by zero reads nothing."""
    pairs = {
        f"blocks.{b}.{layer}.weight": f"blocks.{b}.{ls}.gamma"
        for b in range(DEPTH)
        for layer, ls in (("attn.proj", "ls1"), ("mlp.fc2", "ls2"))
    }
    return masks | {weight: masks[weight] & masks[gamma][:, None] for weight, gamma in pairs.items()}


def sizes(block: nn.Module) -> tuple[int, int]:
    heads = 0 if isinstance(block.attn, Zero) else block.attn.num_heads
    return heads, 0 if isinstance(block.mlp, Zero) else block.mlp.fc1.out_features


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


def dead_mlp() -> dict[str, Tensor]:
    return {"blocks.0.mlp.fc1.weight": torch.zeros(NEURONS, 16, dtype=torch.bool)}


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


# What comes out


def test_what_is_left_is_timms():
    model = model_of(qk_norm=True)
    small = shrink(model, masked(model, some_dead(model)))
    attention, mlp = small.blocks[0].attn, small.blocks[0].mlp
    theirs = Attention(16, 2, attn_head_dim=4, qkv_bias=True, qk_norm=True, norm_layer=type(attention.q_norm)).eval()
    theirs.load_state_dict(attention.state_dict())
    x = torch.randn(2, 10, 16)
    assert torch.equal(theirs(x), attention(x))
    assert repr(theirs.qkv) == repr(attention.qkv)
    plain = ("num_heads", "head_dim", "attn_dim", "scale", "fused_attn")
    assert all(getattr(theirs, name) == getattr(attention, name) for name in plain)
    assert {type(module) for module in small.modules()} == {type(module) for module in model.modules()}
    theirs = Mlp(16, NEURONS - 30).eval()
    theirs.load_state_dict(mlp.state_dict())
    assert torch.equal(theirs(x), mlp(x))


def test_dtype_modes_and_frozen_parameters_stay():
    model = model_of().double().train()
    model.blocks[0].eval()
    model.blocks[0].mlp.fc2.requires_grad_(False)
    model.blocks[1].attn.proj.weight.requires_grad_(False)
    cut = shrink(model, masked(model, some_dead(model) | dead_mlp() | dead_inputs()), branches=True)
    small = gather_inputs(cut)
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float64}
    modes = {name: module.training for name, module in model.named_modules()}
    assert all(modes[name] == module.training for name, module in cut.named_modules())
    assert not any(module.training for module in gather_inputs(cut.eval()).modules())
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert not small.blocks[0].mlp.bias.requires_grad
    assert all(trained.get(name, False) == parameter.requires_grad for name, parameter in cut.named_parameters())
    assert not small.blocks[1].attn.proj[1].weight.requires_grad


def everything_cut() -> nn.Module:
    """Heads, neurons and a branch removed, inputs gathered."""
    model = model_of()
    return gather_inputs(shrink(model, masked(model, some_dead(model) | dead_mlp() | dead_inputs()), branches=True))


def test_a_shrunk_model_trains_copies_and_loads():
    small = everything_cut().train()
    copy = deepcopy(small)
    optimizer = adamw(small)
    first = backward(small)
    optimizer.step()
    assert backward(small) < first
    assert difference(small, copy) > 1e-3
    copy.load_state_dict(small.state_dict())
    assert difference(small, copy) == 0


def test_a_shrunk_model_is_traced_whole():
    small, images = everything_cut(), images_of(torch.float32)
    torch.testing.assert_close(torch.compile(small, fullgraph=True, backend="eager")(images), small(images))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, as it loads its compiler
def test_a_shrunk_model_compiles_and_exports():
    small, images = everything_cut(), images_of(torch.float32)
    torch.testing.assert_close(torch.compile(small)(images), small(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.export.export(small, (images,)).module()(images), small(images))


def test_token_selectors_stay_and_other_hooks_go():
    model = select(model_of(), keep=0.5, at=1)
    sparsifier = masked(model, some_dead(model))
    calls: list[nn.Module] = []
    model.blocks[0].register_forward_hook(lambda module, *_: calls.append(module))
    model.blocks[0].attn.register_forward_pre_hook(lambda module, *_: calls.append(module))
    small = shrink(model, sparsifier)
    assert small.blocks[1].selector is not model.blocks[1].selector
    arrived: list[Tensor] = []
    small.blocks[1].attn.register_forward_pre_hook(lambda _, inputs: arrived.append(inputs[0]))
    small(images_of(torch.float32))
    assert arrived[0].shape[1] == 1 + 5  # half of nine patches, rounded
    assert not calls
    verify(model, small, images_of(torch.float32))
    assert calls == [model.blocks[0].attn, model.blocks[0]]


def test_a_head_that_a_token_selector_looks_at_is_alive():
    model = select(model_of().double(), keep=0.5, at=[0, 1], scorer=Attentive)
    masks = all_alive(model)
    for block in range(DEPTH):
        reads(masks[f"blocks.{block}.attn.proj.weight"])[:, 1:3] = False
    masks["blocks.0.attn.qkv.weight"].view(3, HEADS, -1)[:, 1] = False
    masks["blocks.0.attn.qkv.weight"].view(3, HEADS, -1)[0, 2] = False  # its queries, whose bias still tells keys apart
    small = shrink(model, masked(model, masks))
    assert [block.attn.num_heads for block in small.blocks] == [HEADS - 1, HEADS]
    assert difference(model, small) < 1e-10


def test_wrapped_and_attached_models_shrink_to_the_plain_one():
    model = vit()
    sparsifier = methods.omp(model, 0.5, cut=structures)
    sparsifier.attach(adamw(model))
    small = shrink(torch.compile(model, backend="eager"), sparsifier)
    assert type(small) is type(model)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    backward(small)  # would fail in the hooks on the gradients, whose masks are of other shapes
    verify(model, small, images_of(torch.float32))


# Gathered inputs


def dead_inputs() -> dict[str, Tensor]:
    """Two features of three inputs that no weight reads."""
    masks = {
        name: torch.ones(size, 16, dtype=torch.bool)
        for name, size in (
            ("blocks.1.attn.qkv.weight", 48),
            ("blocks.1.attn.proj.weight", 16),
            ("blocks.1.mlp.fc1.weight", NEURONS),
        )
    }
    for mask in masks.values():
        mask[:, [3, 9]] = False
    return masks


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


# Refusals

ELSEWHERE = {
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "img_size": 56}),
    "beit": ("beit_base_patch16_224", {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32}),
    "eva02": ("eva02_tiny_patch14_224", {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 28}),
    "no transformer": ("resnet10t", {}),
}
NAMED = {
    "swin": r"layers\.0\.blocks\.0 is a timm\.models\.swin_transformer\.SwinTransformerBlock, which can't be cut",
    "beit": r"blocks\.0 is a timm\.models\.beit\.\w+, which can't be cut",
    "eva02": r"blocks\.0 is a timm\.models\.eva\.\w+, which can't be cut",
    "no transformer": r"ResNet has no `blocks`",
}
UNCUT = {
    r"blocks\.0\.attn\.norm is a \S+\.LayerNorm": {"scale_attn_norm": True},
    r"blocks\.0\.mlp\.norm is a \S+\.LayerNorm": {"scale_mlp_norm": True},
    r"blocks\.0 is a \S+\.ParallelScalingBlock": {"block_fn": ParallelScalingBlock},
    r"blocks\.0 is a \S+\.ParallelThingsBlock": {"block_fn": ParallelThingsBlock},
    r"blocks\.0\.mlp is a \S+\.SwiGLU": {"mlp_layer": SwiGLU},
    r"blocks\.0\.attn is a \S+\.DiffAttention": {"attn_layer": DiffAttention},
}


@pytest.mark.parametrize("cut", [shrink, gather_inputs])
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_other_models_are_refused_by_name(kind, cut):
    name, arguments = ELSEWHERE[kind]
    with pytest.raises(ValueError, match=NAMED[kind]):
        cut(timm.create_model(name, **arguments))


@pytest.mark.parametrize(("named", "arguments"), UNCUT.items(), ids=UNCUT)
def test_parts_that_cannot_be_cut_exactly_are_refused_by_name(named, arguments):
    with pytest.raises(ValueError, match=f"{named}, which can't be cut exactly; what can be is timm"):
        shrink(vit(**arguments))


def test_the_blocks_of_a_hybrids_stem_are_none_of_its_own():
    model = timm.create_model("vit_small_r26_s32_224", **{**VIT, "img_size": 32, "patch_size": 1}).eval()
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight[:, :5] = 0
    small = shrink(model)
    assert sizes(small.blocks[0]) == (2, NEURONS - 5)
    verify(model, small, torch.randn(1, 1, 32, 32))


def test_a_gate_is_refused_by_name():
    model = vit()
    model.blocks[0].attn = Attention(16, 2, gated=True)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.gate is a \S+\.Linear, which can't be cut"):
        shrink(model)


def test_masks_of_another_model_are_refused():
    model = model_of()
    shapes = SimpleNamespace(masks={"blocks.0.mlp.fc1.weight": torch.ones(3, 16, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"The model has no blocks\.0\.mlp\.fc1\.weight of shape \(3, 16\)"):
        shrink(model, shapes)
    with pytest.raises(ValueError, match=r"Dead weights of blocks\.0\.mlp\.fc1\.weight are not zero"):
        shrink(model, SimpleNamespace(masks=dead_mlp()), branches=True)


# Verification


def test_verify_finds_a_wrong_cut_and_leaves_the_modes():
    model = model_of().train()
    model.blocks[0].eval()
    wrong = deepcopy(model)
    modes = [module.training for module in model.modules()]
    images = images_of(torch.float32)
    with torch.no_grad():
        wrong.head.bias[0] += 0.5
    with pytest.raises(ValueError, match=r"logits differ by 0\.5, where at most"):
        verify(model, wrong, images)
    assert verify(model, wrong, images, tolerance=1.0) == pytest.approx(0.5, abs=1e-5)
    assert modes == [module.training for module in model.modules()] == [module.training for module in wrong.modules()]
    with torch.no_grad():
        wrong.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match="logits differ by nan"):
        verify(model, wrong, images, tolerance=100.0)


class Outputs(nn.Module):
    """A model that returns several outputs, whatever it is given."""

    def __init__(self, *outputs: float) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.full((len(images), CLASSES), output) for output in self.outputs)


def test_verify_compares_all_outputs_relative_to_the_largest():
    images = images_of()
    assert verify(Outputs(1.0, 2000.0), Outputs(1.0, 2000.01), images) == pytest.approx(0.01, rel=0.1)
    for other in (Outputs(1.5, 2000.0), Outputs(float("nan"), 2000.0)):
        with pytest.raises(ValueError, match="not an exact copy"):
            verify(Outputs(1.0, 2000.0), other, images)
    with pytest.raises(ValueError, match="are of shapes"):
        verify(Outputs(1.0, 2.0), Outputs(1.0), images)
    with pytest.raises(ValueError, match="no images"):
        verify(Outputs(1.0), Outputs(1.0), images[:0])
