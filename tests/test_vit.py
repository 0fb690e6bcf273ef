"""What a Vision Transformer attends to and costs, against timm's own unfused attention and against counting by hand."""

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet
from tiny import batch, vit
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from svite.vit.attention import attention_maps, centre_patch_maps
from svite.vit.cost import cost, input_shape, macs
from svite.vit.gather import gather_inputs
from svite.vit.mode import evaluating
from svite.vit.shrink import shrink

VARIANTS = {
    "plain": {},
    "two layers, registers": {"depth": 2, "reg_tokens": 4},
    "qk norm": {"qk_norm": True},
    "no class token": {"class_token": False, "global_pool": "avg"},
}


def unfused(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Mean attention probabilities as timm itself computes them: what goes into its attention dropout."""
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    with torch.no_grad():
        model.eval()(images)
    return [probabilities.mean(0) for probabilities in seen]


@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
def test_attention_maps_are_those_of_an_unfused_forward(arguments):
    model, (images, _) = vit(**arguments), batch(0, 7)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)  # far from uniform
    before = model(images)
    maps = attention_maps(model, images, batch=3)
    assert torch.equal(model(images), before)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    expected = unfused(model, images)
    assert len(maps) == len(model.blocks)
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:2]))
        assert found.std() > 0.03


def test_the_centre_patchs_map_is_its_row_without_the_prefix_tokens():
    model, (images, _) = vit(reg_tokens=2), batch(0)
    found = centre_patch_maps(model, images)
    assert found.shape == (1, 2, 3, 3)
    row = attention_maps(model, images)[0][:, 3 + 4]  # a class token and two registers, then the fifth of nine patches
    assert torch.equal(found[0].flatten(1), row[:, 3:])


def test_a_model_without_attention_is_an_error():
    with pytest.raises(ValueError, match="Linear has no timm Attention layer"):
        attention_maps(nn.Linear(4, 4), torch.zeros(1, 1, 2, 2))


def test_deit_small_costs_what_the_papers_say():
    counted = macs(timm.create_model("deit_small_patch16_224"))
    assert sum(counted.attention.values()) / 1e9 == pytest.approx(0.358, abs=5e-4)
    assert (counted.total() - sum(counted.attention.values())) / 1e9 == pytest.approx(4.241, abs=5e-4)
    assert counted.total() / 1e9 == pytest.approx(4.599, abs=5e-4)


def test_macs_are_those_of_counting_by_hand():
    counted = macs(vit())
    width, patches, tokens = 16, 9, 10
    assert counted.uses == {
        "patch_embed.proj.weight": patches,
        "blocks.0.attn.qkv.weight": tokens,
        "blocks.0.attn.proj.weight": tokens,
        "blocks.0.mlp.fc1.weight": tokens,
        "blocks.0.mlp.fc2.weight": tokens,
        "head.weight": 1,
    }
    assert sum(counted.attention.values()) == 2 * width * tokens**2
    by_hand = (
        patches * 16 * width + tokens * width * width * (3 + 1 + 4 + 4) + width * 5 + sum(counted.attention.values())
    )
    assert counted.total() == by_hand
    halved = counted.total({"blocks.0.mlp.fc1.weight": 0.5})
    assert by_hand - halved == tokens * width * width * 2


def test_cost_counts_zeros_as_absent_in_the_sparse_numbers_only():
    model = vit()
    whole = cost(model)
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert whole.parameters == sum(p.numel() for p in model.parameters())
    assert whole.nonzero == whole.parameters - zeros
    assert whole.sparse_macs == whole.macs
    assert whole.bytes == 4 * sum(value.numel() for value in model.state_dict().values())
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[:32] = 0
    half = cost(model)
    assert half.parameters == whole.parameters
    assert half.nonzero == whole.nonzero - 32 * 16
    assert half.macs == whole.macs
    assert whole.macs - half.sparse_macs == 10 * 32 * 16
    assert model.training


def test_looking_at_a_model_leaves_every_module_its_own_mode_and_no_hook():
    model, (images, _) = vit(depth=2), batch(0)
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    attention_maps(model, images)
    macs(model)
    with pytest.raises(AssertionError, match="Input height"):
        attention_maps(model, images[:, :, :5])
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with evaluating(model):
        assert not any(module.training for module in model.modules())


COUNTED = {
    "plain": ("vit_tiny_patch16_224", {"depth": 1, "img_size": 32, "patch_size": 8}),
    "hybrid": ("vit_tiny_r_s16_p8_224", {"depth": 1, "img_size": 64}),
    "feature maps": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 32, "features_only": True, "out_indices": (0,)}),
    "attention pool": ("vit_base_patch16_siglip_224", {"depth": 1, "img_size": 32}),
    "windows": ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "embed_dim": 24, "num_heads": (1, 2)}),
    "linear layers called as functions": ("beit_base_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}),
    "convolutions": ("resnet10t", {"in_chans": 1}),
}


def products(model: nn.Module, images: Tensor) -> int:
    """All multiply-accumulates, by torch's own counter."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(images)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "arguments"), COUNTED.values(), ids=COUNTED)
def test_every_model_of_timm_costs_what_torch_multiplies(name, arguments, dtype):
    model = timm.create_model(name, **arguments)
    found = cost(model.to(dtype))
    assert found.sparse_macs <= found.macs == products(model.float(), torch.zeros(1, *input_shape(model)))
    assert input_shape(model)[1] == arguments.get("img_size", model.pretrained_cfg["input_size"][1])
    assert found.bytes == sum(value.nbytes for value in model.to(dtype).state_dict().values())


def test_wrapping_and_compiling_change_no_count_and_nothing_is_compiled():
    def refuse(graph: torch.fx.GraphModule, _: list[Tensor]):
        raise AssertionError("compiled")

    class DistributedDataParallel(nn.Module):  # the name by which it is known
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model, images, inside = vit(depth=2), batch(0)[0], vit(depth=2)
    inside.blocks[0].compile(backend=refuse)
    expected = attention_maps(model, images)
    for other in (DistributedDataParallel(model), torch.compile(model, backend=refuse), inside):
        assert cost(other) == cost(model)
        assert all(map(torch.equal, attention_maps(other, images), expected))
        assert torch.equal(centre_patch_maps(other, images), centre_patch_maps(model, images))


def test_tied_weights_count_once_and_in_both_places():
    model = vit(depth=2)
    model.blocks[1].mlp.fc1 = model.blocks[0].mlp.fc1
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[:32] = 0
    found, apart = cost(model), cost(vit(depth=2))
    assert found.parameters == apart.parameters - 64 * 16 - 64
    assert found.macs - found.sparse_macs == 2 * 10 * 32 * 16


def test_a_model_that_cannot_be_counted_is_one_sentence():
    with pytest.raises(ValueError, match=r"^Sequential does not say what images it takes[^\n]*\.$"):
        cost(nn.Sequential(nn.Conv2d(3, 4, 1)))
    odd = vit()
    odd.head = nn.Linear(17, 5)
    with pytest.raises(ValueError, match=r"^VisionTransformer can't be counted, for it fails on a blank[^\n]*\.$"):
        cost(odd)


CUTS = {
    "shrunk": lambda model: shrink(model),
    "branches": lambda model: shrink(model, branches=True),
    "gathered": lambda model: gather_inputs(shrink(model)),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_the_feature_info_of_a_smaller_model_is_true(cut):
    model, images = vit(depth=2), batch(0)[0]
    with torch.no_grad():
        model.blocks[0].attn.proj.weight[:, 8:] = 0
        model.blocks[1].mlp.fc1.weight[3:] = 0
        model.blocks[1].attn.qkv.weight[:, :4] = 0
        if cut is CUTS["branches"]:
            model.blocks[1].attn.proj.weight.zero_()
    expected = model.eval().forward_intermediates(images, intermediates_only=True)
    small = FeatureGetterNet(cut(model), (0, 1), prune=False)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    for found, wanted, said in zip(small(images), expected, small.feature_info.get_dicts(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
        assert found.shape == (8, said["num_chs"], 12 // said["reduction"], 12 // said["reduction"])
