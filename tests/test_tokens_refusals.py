"""Selections that can't be made, or can't be run, are refused in one sentence and change nothing."""

import copy
import pickle

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet
from tiny import VIT, batch, vit
from tiny_tokens import lengths, selected, variant

import svite
from svite import tokens
from svite.sparsity.names import unwrapped
from svite.vit.attention import attention_maps
from svite.vit.parts import Zero
from svite.vit.shrink import shrink

REFUSED = {
    "keep nothing": ({"keep": 0.0}, r"keep is 0\.0"),
    "keep more than all": ({"keep": 1.2}, r"keep is 1\.2"),
    "not a number": ({"keep": float("nan")}, "keep is nan"),
    "no such block": ({"at": (0, 3, -1)}, "block 3, -1; the model has blocks 0 to 2"),
    "yes": ({"at": True}, "at is True; it must be the number of a block"),
    "function": ({"at": lambda depth: (depth,)}, "block 3; the model has blocks 0 to 2"),
    "function of no number": ({"at": lambda depth: "3"}, "at is '3'; it must be the number of a block"),
    "no quarters": ({"at": tokens.quarters}, "A model of 3 blocks has no quarters"),
    "nowhere": ({"at": ()}, "no block; the model has blocks 0 to 2"),
    "twice": ({"at": (1, 2, 1)}, "Block 1 can have one selector only"),
    "none left": ({"keep": 0.05}, r"keep=0\.05 would leave none of the 9 patch tokens that reach block 0"),
    "none left later": ({"keep": 0.2, "at": (2, 0)}, "none of the 2 patch tokens that reach block 2"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_sentence_and_changes_nothing(arguments, message):
    model = variant("class token")
    random, before = torch.get_rng_state(), repr(model)
    with pytest.raises(ValueError, match=message):
        tokens.select(model, **{"keep": 0.5, "at": 0, **arguments})
    assert repr(model) == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_second_selection_goes_to_other_blocks_and_counts_the_first():
    model = tokens.select(variant("class token"), 0.2, 1)
    with pytest.raises(ValueError, match="Block 1 can have one selector only"):
        tokens.select(model, 0.5, (0, 1))
    with pytest.raises(ValueError, match="none of the 2 patch tokens that reach block 1"):
        tokens.select(model, 0.25, 0)
    assert lengths(tokens.select(model, 0.5, 2), batch(0)[0]) == [10, 10, 3, 3, 2, 2]


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_relpos_small_patch16_224", "beit_base_patch16_224"])
def test_a_model_that_cares_where_tokens_lie_is_refused_by_name(name):
    with torch.device("meta"):
        model = timm.create_model(name, depth=1)
    with pytest.raises(ValueError, match=f"{type(model).__name__} is not timm's VisionTransformer"):
        tokens.select(model, at=0)


def test_a_block_without_attention_is_refused_by_attentive_before_and_after_but_not_by_learned():
    model = variant("class token")
    model.blocks[1].attn = Zero()
    with pytest.raises(ValueError, match=r"blocks\.1 and finds Zero;"):
        tokens.select(model, 0.5, (0, 1), tokens.Attentive)
    assert not hasattr(model.blocks[0], "selector")
    assert tokens.select(model, 0.5, 1) is model
    late = selected(scorer=tokens.Attentive)
    late.blocks[2].attn = Zero()  # gone since: all tokens are worth the same, and the first ones stay
    assert lengths(late, batch(0)[0]) == [6, 6, 6, 6, 4, 4]
    parallel = vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock)
    with pytest.raises(ValueError, match=r"blocks\.0 and finds ParallelScalingBlock;"):
        tokens.select(parallel, 0.5, 0, tokens.Attentive)


@pytest.mark.parametrize("arguments", [{"attn_mask": torch.zeros(10, 10)}, {"is_causal": True}])
def test_a_mask_over_tokens_that_are_gone_is_refused(arguments):
    with pytest.raises(ValueError, match="takes no attention mask"):
        selected()(batch(0)[0], **arguments)


COPIES = {
    "itself": lambda model, path: model,
    "deep copy": lambda model, path: copy.deepcopy(model),
    "pickle": lambda model, path: pickle.loads(pickle.dumps(model)),
    "shrunk": lambda model, path: shrink(model),
    "saved": lambda model, path: svite.save(model, path, build=BUILD) or svite.load(path)[0],
    "compiled": lambda model, path: torch.compile(model, backend="eager"),
}
BUILD = ("vit_tiny_patch16_224", VIT | {"depth": 2})
MAPS = {
    "forward_intermediates": lambda model, images: model.forward_intermediates(images, output_fmt="NLC"),
    "get_intermediate_layers": lambda model, images: model.get_intermediate_layers(images, 1, reshape=True),
    "feature getter": lambda model, images: FeatureGetterNet(model, (0, 1)),
    "feature getter of all": lambda model, images: FeatureGetterNet(model, (0, 1), prune=False)(images),
}


@pytest.mark.parametrize("made", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_feature_maps_with_patches_missing_are_refused_and_copies_refuse_too(made, maps, tmp_path):
    model = made(tokens.select(variant("class token", depth=2), 1 / 3, 1).eval(), tmp_path / "model.safetensors")
    blocks = len(model.blocks)
    with pytest.raises(RuntimeError, match=r"^A model that removes tokens has no feature maps, "):
        maps(model, batch(0)[0])
    assert len(model.blocks) == blocks, "a wrapper that is refused has cut nothing off"
    assert unwrapped(model)(batch(0)[0]).shape == (8, 5)


def test_attention_maps_of_patches_that_differ_from_image_to_image_are_refused():
    with pytest.raises(ValueError, match="a mean over images would mix patches"):
        attention_maps(selected(), batch(0)[0])


NAN, INFINITE = float("nan"), float("inf")
TEMPERATURES = [
    ((1.5,), "progress is 1.5"),
    ((NAN,), "progress is nan"),
    ((0.5, 1.0, 0.0), "stop is 0.0"),
    ((0.5, 1.0, NAN), "stop is nan"),
    ((0.5, NAN), "start is nan"),
    ((0.5, INFINITE), "start is inf"),
]


@pytest.mark.parametrize(("arguments", "message"), TEMPERATURES)
def test_a_temperature_that_makes_no_sense_is_refused(arguments, message):
    model = selected()
    with pytest.raises(ValueError, match=message):
        tokens.anneal(model, *arguments)
    assert float(model.blocks[0].selector.scorer.tau) == 1
