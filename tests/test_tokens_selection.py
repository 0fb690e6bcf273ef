"""Which tokens stay, against the oracle, in the model, its copies, and what is shrunk or exported of it."""

import copy
import pickle

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CLASSES, backward, batch, logits, same, vit
from tiny_tokens import SCORERS, by_hand, lengths, oracle, scorers, seeded, selected, variant, variants
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from svite import tokens
from svite.tokens.selector import highest
from svite.vit.cost import macs
from svite.vit.shrink import shrink


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.data())
def test_the_highest_are_chosen_exactly_and_ties_go_to_the_lower_index(scores, data):
    keep = data.draw(st.integers(1, len(scores)))
    rows = torch.tensor([scores, scores[::-1]], dtype=torch.float32)
    assert highest(rows, keep).tolist() == [by_hand(row, keep) for row in rows]


@scorers
@variants
def test_removing_tokens_is_running_the_blocks_on_fewer(name, scorer):
    model, plain, (images, _) = selected(name, scorer=scorer), variant(name).eval(), batch(0, 4)
    with torch.no_grad():
        found, kept = logits(model, images), tokens.kept(model, images, batch=3)
        for image, row, *masks in zip(images, found, *kept, strict=True):
            wanted, left = oracle(plain, model, image)
            torch.testing.assert_close(row, wanted[0], atol=1e-6, rtol=1e-5)
            assert [mask.nonzero()[:, 0].tolist() for mask in masks] == left
    assert not torch.allclose(found, logits(plain, images), atol=1e-4)
    assert len({tuple(mask.tolist()) for mask in kept[0]}) > 1, "the same patches in every image would prove little"


@pytest.mark.parametrize("training", [True, False])
@scorers
@variants
def test_every_block_sees_exactly_the_kept_tokens_and_the_whole_prefix(name, scorer, training):
    model, seen = selected(name, keep=0.55, scorer=scorer).train(training), []
    model.blocks[0].selector.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    prefix = model.num_prefix_tokens
    assert lengths(model, batch(0)[0]) == [prefix + patches for patches in (5, 5, 5, 5, 3, 3)]
    (before, after) = seen[0]
    assert torch.equal(after[:, :prefix], before[:, :prefix])


def test_selection_compounds_to_the_nearest_whole_number_and_leaves_at_least_one():
    model = tokens.select(variant("no prefix"), 0.7, at=(0, 1, 2))
    assert lengths(model, batch(0)[0]) == [6, 6, 4, 4, 3, 3]  # of 9, by 0.7: 6.3, 4.2, 2.8
    assert tokens.Selector(0.1, 0, nn.Identity()).wanted(3) == 1


@pytest.mark.parametrize("training", [True, False])
@scorers
def test_keeping_all_is_bit_for_bit_the_model_without_selection(scorer, training):
    plain = variant("class token", drop_rate=0.1, proj_drop_rate=0.1).train(training)
    model = tokens.select(copy.deepcopy(plain), 1.0, (0, 2), scorer)
    results = []
    for each in (plain, model):
        torch.manual_seed(1)
        backward(each)
        results.append({name: p.grad for name, p in each.named_parameters() if "selector" not in name})
    assert same(*results)
    assert torch.equal(plain.eval()(batch(0)[0]), model.eval()(batch(0)[0]))


@scorers
def test_selectors_take_over_the_mode_of_their_block(scorer):
    model, images = tokens.select(variant("class token").eval(), 0.5, (0, 2), scorer), batch(0)[0]
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(images), model(images)), "evaluation is deterministic"
    assert all(module.training for module in tokens.select(variant("class token"), 0.5, 0, scorer).modules())


def test_attentive_reads_a_block_with_fewer_heads():
    model = variant("class token")
    block = model.blocks[0]
    block.attn = type(block.attn)(16, num_heads=1, attn_head_dim=8, qkv_bias=True)
    plain = copy.deepcopy(model).eval()
    model = tokens.select(model, 0.5, 0, tokens.Attentive).eval()
    with torch.no_grad():
        for image, mask in zip(batch(0)[0], tokens.kept(model, batch(0)[0])[0], strict=True):
            assert [mask.nonzero()[:, 0].tolist()] == oracle(plain, model, image)[1]


def test_kept_restores_the_model_and_needs_a_selector():
    model = selected().train()
    masks = tokens.kept(model, batch(0)[0])
    assert model.training
    assert [mask.sum(1).tolist() for mask in masks] == [[5] * 8, [3] * 8]
    assert not (masks[1] & ~masks[0]).any()
    assert not any(block.selector._forward_pre_hooks for block in model.blocks if hasattr(block, "selector"))
    with pytest.raises(ValueError, match="VisionTransformer has no token selector"):
        tokens.kept(vit(), batch(0)[0])


def test_quarters_are_the_blocks_after_each_quarter_of_the_depth():
    assert [tokens.quarters(depth) for depth in (4, 7, 12, 24)] == [(1, 2, 3), (1, 3, 5), (3, 6, 9), (6, 12, 18)]
    images = batch(0)[0]
    by_name = tokens.select(variant("class token", depth=4), 0.5, tokens.quarters).eval()
    by_number = tokens.select(variant("class token", depth=4), 0.5, (1, 2, 3)).eval()
    assert lengths(by_name, images) == lengths(by_number, images) == [10, 10, 6, 6, 4, 4, 3, 3]
    assert torch.equal(by_name(images), by_number(images))


@pytest.mark.parametrize("scorer", SCORERS)
def test_multiply_accumulates_fall_as_counted_by_hand(scorer):
    model = selected(scorer=SCORERS[scorer])
    width, hidden, qkv = 16, 64, 3 * 16 * 16

    def block(length: int) -> int:
        return length * (4 * width * width + 2 * width * hidden) + 2 * length**2 * width

    # The qkv layer runs on all that arrive, too, and the class token asks them all.
    looking = (10 + 6) * (qkv + width) if scorer == "attentive" else 0
    assert macs(model).total() == 9 * 16 * width + 2 * block(6) + block(4) + width * CLASSES + looking
    assert macs(variant("class token")).total() == 9 * 16 * width + 3 * block(10) + width * CLASSES


# Copies


@scorers
def test_everything_else_keeps_timms_names_and_a_state_dict_goes_round(scorer):
    model = selected(scorer=scorer)
    own = [f"blocks.{i}.selector.scorer.weight" for i in (0, 2)] if scorer is tokens.Learned else []
    assert {*model.state_dict()} == {*variant("class token").state_dict(), *own}
    torch.manual_seed(5)
    other = tokens.select(vit(seed=5, depth=3), 0.5, (0, 2), scorer).eval()
    assert not torch.equal(other(batch(0)[0]), model(batch(0)[0]))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch(0)[0]), model(batch(0)[0]))


@scorers
def test_a_copy_selects_too_and_leaves_the_original_alone(scorer):
    model, images = selected(scorer=scorer), batch(0)[0]
    before = model(images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert lengths(twin, images) == lengths(model, images)
        assert torch.equal(twin(images), before)
        with torch.no_grad():
            twin.blocks[0].norm1.weight.zero_()
        twin.blocks[0].selector.hook.remove()
        assert lengths(twin, images)[0] == lengths(model, images)[0] + 4
    assert torch.equal(model(images), before)


def test_another_process_does_not_give_an_unpickled_selectors_hook_number_away(monkeypatch):
    model, images = selected(), batch(0)[0]
    before, pickled = lengths(model, images), pickle.dumps(model)
    monkeypatch.setattr(RemovableHandle, "next_id", model.blocks[0].selector.hook.id)  # as a young process counts
    loaded = pickle.loads(pickled)
    for _ in range(3):
        loaded.blocks[0].register_forward_pre_hook(lambda *_: None)
    assert lengths(loaded, images) == before


@scorers
def test_a_shrunk_model_selects_the_same_tokens(scorer):
    model, images = selected(scorer=scorer), batch(0)[0]
    with torch.no_grad():
        for block in model.blocks[1:]:
            for part in (*block.attn.qkv.parameters(), block.attn.proj.weight.T):
                part.unflatten(0, (-1, 2, 8))[:, 1] = 0
    small = shrink(model)
    assert [block.attn.num_heads for block in small.blocks] == [2, 1, 1]
    torch.testing.assert_close(small(images), model(images), atol=1e-6, rtol=1e-5)
    assert all(
        torch.equal(*masks) for masks in zip(tokens.kept(small, images), tokens.kept(model, images), strict=True)
    )
    assert lengths(small, images) == lengths(model, images)
    small.train()(images)


@pytest.fixture
def unchecked():
    """Without shape checks, which torch's compiler can't read."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@scorers
def test_an_exported_model_takes_batches_of_any_size(scorer):
    model = tokens.select(variant("class token", depth=1), 0.5, 0, scorer).eval()
    images = batch(0)[0]
    exported = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    for size in (1, 5):
        torch.testing.assert_close(exported(images[:size]), model(images[:size]))


@pytest.mark.usefixtures("unchecked")
def test_a_compiled_model_is_one_graph_that_annealing_does_not_recompile():
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    model = tokens.select(variant("class token", depth=1), 0.5, 0)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for progress in (0.0, 0.3, 1.0):
        tokens.anneal(compiled, progress)
        torch.manual_seed(6)
        torch.testing.assert_close(compiled(batch(0)[0]), seeded(model, 6))
    assert len(graphs) == 1
