"""What shrinking returns: timm's own modules, which train, copy, load, compile, and select tokens."""

from copy import deepcopy

import pytest
import timm
import torch
from timm.layers import Attention, Mlp
from tiny import VIT, adamw, backward, vit
from tiny_cuts import (
    DEPTH,
    HEADS,
    NEURONS,
    all_alive,
    dead_inputs,
    dead_mlp,
    difference,
    everything_cut,
    images_of,
    masked,
    model_of,
    reads,
    sizes,
    some_dead,
)
from torch import Tensor, nn

from svite import methods
from svite.tokens import Attentive, Learned, select
from svite.vit.gather import gather_inputs
from svite.vit.parts import Zero
from svite.vit.shrink import shrink
from svite.vit.structure import structures
from svite.vit.verify import verify


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


def test_wrapped_and_attached_models_shrink_to_the_plain_one():
    model = vit()
    sparsifier = methods.omp(model, 0.5, cut=structures)
    sparsifier.attach(adamw(model))
    small = shrink(torch.compile(model, backend="eager"), sparsifier)
    assert type(small) is type(model)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    backward(small)  # would fail in the hooks on the gradients, whose masks are of other shapes
    verify(model, small, images_of(torch.float32))


def test_the_blocks_of_a_hybrids_stem_are_none_of_its_own():
    model = timm.create_model("vit_small_r26_s32_224", **{**VIT, "img_size": 32, "patch_size": 1}).eval()
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight[:, :5] = 0
    small = shrink(model)
    assert sizes(small.blocks[0]) == (2, NEURONS - 5)
    verify(model, small, torch.randn(1, 1, 32, 32))


# Token selectors


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


@pytest.mark.parametrize("arguments", [{}, {"init_values": 1.0}])
def test_heads_that_change_nothing_have_no_say_in_which_tokens_stay(arguments):
    model = select(model_of(**arguments).double(), keep=0.5, at=[0, 1], scorer=Attentive)
    masks = all_alive(model)
    for block in range(DEPTH):
        reads(masks[f"blocks.{block}.attn.proj.weight"])[:, 1:3] = False
    masks["blocks.0.attn.qkv.weight"].view(3, HEADS, -1)[2, 3] = False  # its values
    small = shrink(model, masked(model, masks))
    assert [block.attn.num_heads for block in small.blocks] == [HEADS - 3, HEADS - 2]
    assert difference(model, small) < 1e-10


@pytest.mark.parametrize("scorer", [Attentive, Learned])
def test_an_attention_that_is_gone_whole_leaves_a_model_that_still_selects(scorer):
    model = select(model_of().double(), keep=0.5, at=[0, 1], scorer=scorer)
    masks = all_alive(model)
    masks["blocks.1.attn.proj.weight"][:] = False
    small = shrink(model, masked(model, masks), branches=True)
    assert type(small.blocks[1].attn) is Zero
    assert difference(model, small) < 1e-10


def test_a_hook_of_ones_own_on_a_block_that_selects_is_left_out():
    model = select(model_of().double(), keep=0.5, at=1)
    calls = []
    model.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    small = shrink(model)
    small(images_of())
    assert not calls
    assert difference(model, small) < 1e-10
