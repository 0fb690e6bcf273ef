"""What can't be cut exactly is refused by name, and a copy that is not exact by its difference."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.layers import Attention, DiffAttention, SwiGLU
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock
from tiny import CLASSES, vit
from tiny_cuts import dead_mlp, images_of, model_of
from torch import Tensor, nn

from svite.vit.gather import gather_inputs
from svite.vit.shrink import shrink
from svite.vit.verify import verify

# Models, parts and masks

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
