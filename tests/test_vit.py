"""What a Vision Transformer attends to and costs, against timm's own unfused attention and against counting by hand."""

import pytest
import timm
import torch
from tiny import batch, vit
from torch import Tensor, nn

from svite.vit.attention import attention_maps, centre_patch_maps
from svite.vit.cost import cost, macs
from svite.vit.mode import evaluating

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
