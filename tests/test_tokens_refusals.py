"""Selections that can't be made, or can't be run, are refused in one sentence and change nothing."""

import pytest
import timm
import torch
from tiny import batch, vit
from tiny_tokens import lengths, selected, variant

from svite import tokens
from svite.vit.parts import Zero

REFUSED = {
    "keep nothing": ({"keep": 0.0}, r"keep is 0\.0"),
    "keep more than all": ({"keep": 1.2}, r"keep is 1\.2"),
    "not a number": ({"keep": float("nan")}, "keep is nan"),
    "no such block": ({"at": (0, 3, -1)}, "block 3, -1; the model has blocks 0 to 2"),
    "yes": ({"at": True}, "at is True; it must be the number of a block"),
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


def test_a_mask_over_tokens_that_are_gone_is_refused():
    with pytest.raises(ValueError, match="takes no attention mask"):
        selected()(batch(0)[0], attn_mask=torch.zeros(10, 10))


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
