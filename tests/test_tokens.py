"""Token selection against a brute-force oracle that drops tokens by hand, one image at a time."""

import copy
import pickle

import jaxtyping
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CLASSES, VIT, adamw, backward, batch, dead_are_zero, logits, run, same, vit, weights_of
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from svite import methods, tokens
from svite.sparsity.mask import count
from svite.tokens.selector import highest
from svite.vit.cost import macs
from svite.vit.parts import Zero
from svite.vit.shrink import shrink

SCORERS = {"learned": tokens.Learned, "attentive": tokens.Attentive}
VARIANTS = {
    "class token": {},
    "registers": {"reg_tokens": 4},
    "registers alone": {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "qk norm, layer scale": {"qk_norm": True, "init_values": 0.1},
    "attention pool": {"class_token": False, "global_pool": "map"},
}
variants = pytest.mark.parametrize("name", [*VARIANTS, "distilled"])
scorers = pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)


def variant(name: str, depth: int = 3, **arguments: object) -> nn.Module:
    """A tiny model whose attention is far from uniform."""
    if name == "distilled":
        torch.manual_seed(0)
        model = timm.create_model("deit_tiny_distilled_patch16_224", **VIT | {"depth": depth} | arguments)
    else:
        model = vit(depth=depth, **VARIANTS[name], **arguments)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)
            for weight in (*block.attn.q_norm.parameters(), *block.attn.k_norm.parameters()):
                weight.normal_()
    return model


def selected(name: str = "class token", keep: float = 0.5, at: tuple[int, ...] = (0, 2), **arguments) -> nn.Module:
    """The variant with selectors, at evaluation."""
    return tokens.select(variant(name), keep, at, **arguments).eval()


def lengths(model: nn.Module, images: Tensor) -> list[int]:
    """How many tokens each block's attention and MLP see."""
    seen: list[int] = []
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
        for block in model.blocks
        for norm in (block.attn, block.mlp)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


def by_hand(scores: Tensor, keep: int) -> list[int]:
    """Which to keep: higher scores first, among equals the earlier; in ascending order."""
    values = scores.tolist()
    return sorted(sorted(range(len(values)), key=lambda place: (-values[place], place))[:keep])


def attention_received(block: nn.Module, x: Tensor, class_token: bool) -> Tensor:
    """What timm's own unfused attention gives each token: what goes into its dropout."""
    block, seen = copy.deepcopy(block), []
    block.attn.fused_attn = False
    block.attn.attn_drop.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    block(x)
    return seen[0][0, :, 0].mean(0) if class_token else seen[0][0].mean((0, 1))


def oracle(plain: nn.Module, model: nn.Module, image: Tensor) -> tuple[Tensor, list[list[int]]]:
    """Logits of one image through the model without selectors, tokens dropped by hand; and the patches left."""
    prefix = plain.num_prefix_tokens
    x = plain.norm_pre(plain._pos_embed(plain.patch_embed(image[None])))
    patches, left = list(range(x.shape[1] - prefix)), []
    for block, twin in zip(plain.blocks, model.blocks, strict=True):
        if hasattr(twin, "selector"):
            scorer = twin.selector.scorer
            if isinstance(scorer, tokens.Learned):
                scores = nn.functional.layer_norm(x[0], x.shape[-1:]) @ scorer.weight
            else:
                scores = attention_received(block, x, plain.cls_token is not None)
            chosen = by_hand(scores[prefix:], count(twin.selector.keep, len(patches)))
            patches = [patches[place] for place in chosen]
            left.append(patches)
            x = x[:, [*range(prefix), *(prefix + place for place in chosen)]]
        x = block(x)
    return plain.forward_head(plain.norm(x)), left


# Selection


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


# Training


def straight(keep: float = 0.5, patches: int = 9, width: int = 16) -> tuple[tokens.Selector, Tensor]:
    """A learned selector in training and tokens of three images, with one prefix token."""
    torch.manual_seed(3)
    model = vit()
    with torch.no_grad():
        selector = tokens.Selector(keep, 1, tokens.Learned(model, 0))
        selector.scorer.weight.mul_(20)
    return selector, torch.randn(3, patches + 1, width)


@given(st.floats(0.05, 20), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_in_training_tokens_pass_with_a_factor_of_exactly_one(tau, dtype):
    selector, x = straight()
    selector, x = selector.to(dtype), x.to(dtype)
    selector.scorer.tau.fill_(tau)
    passed = selector(x, nn.Identity())
    assert passed.shape == (3, 6, 16)
    for before, after in zip(x, passed, strict=True):
        rows = [int((before == row).all(1).nonzero()) for row in after]
        assert rows == sorted(set(rows))
        assert rows[0] == 0


@pytest.mark.parametrize("tau", [10.0, 1.0, 0.1])
def test_the_scorers_gradient_is_that_of_one_softmax_sample(tau):
    selector, x = straight()
    selector, x = selector.double(), x.double().requires_grad_()
    selector.scorer.tau.fill_(tau)
    weights = torch.randn(3, 6, 16, dtype=torch.float64)
    torch.manual_seed(7)
    (selector(x, nn.Identity()) * weights).sum().backward()

    weight, y = selector.scorer.weight.detach().requires_grad_(), x.detach().requires_grad_()
    torch.manual_seed(7)
    gumbel = -torch.empty(3, 10, dtype=torch.float64).exponential_().log()
    noisy = (nn.functional.layer_norm(y, (16,)) @ weight + gumbel)[:, 1:] / tau
    loss = (y[:, 0] * weights[:, 0]).sum()
    for image, row in enumerate(noisy):
        for order, place in enumerate(by_hand(row, 5)):
            token = y[image, 1 + place]
            value = (token.detach() * weights[image, 1 + order]).sum()
            loss = loss + row.softmax(0)[place] * value + (token * weights[image, 1 + order]).sum()
    loss.backward()
    torch.testing.assert_close(selector.scorer.weight.grad, weight.grad)
    torch.testing.assert_close(x.grad, y.grad)
    assert weight.grad.abs().min() > 0


def test_training_samples_without_replacement_in_proportion_to_the_softmax():
    selector, x = straight(keep=0.4, patches=5)
    draws = 20_000
    x = x[:1].expand(draws, -1, -1)
    probability = selector.eval().scores(x[:1], nn.Identity())[0].softmax(0)
    assert probability.max() > 0.4
    expected = torch.stack(
        [  # first or second of two draws
            p + sum(q * p / (1 - q) for j, q in enumerate(probability) if j != i) for i, p in enumerate(probability)
        ]
    )
    torch.manual_seed(0)
    scores = selector.train().scores(x, nn.Identity())
    found = torch.zeros(draws, 5).scatter(1, selector.chosen(scores), 1.0).mean(0)
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / draws).sqrt()).all()


def test_a_scorer_learns_which_tokens_help():
    selector, _ = straight(keep=0.25, patches=8)
    optimizer = torch.optim.Adam(selector.parameters(), lr=0.05)
    for step in range(150):
        tokens.anneal(selector, step / 150)
        optimizer.zero_grad()
        (-selector(torch.randn(32, 9, 16), nn.Identity())[:, 1:, 3].mean()).backward()
        optimizer.step()
    x = torch.randn(200, 9, 16)
    kept = selector.eval()(x, nn.Identity())[:, 1:, 3].mean()
    best = x[:, 1:, 3].topk(2).values.mean()
    assert kept > 0.9 * best


def test_fresh_selectors_tie_nowhere_and_let_the_noise_decide():
    scorer = tokens.Learned(vit(embed_dim=384, num_heads=6), 0).eval()
    scores = scorer(torch.randn(50, 9, 384), nn.Identity())
    assert all(len(row.unique()) == 9 for row in scores)
    assert scores.std() < 0.5  # the noise: 1.28


def seeded(model: nn.Module, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return model(batch(0)[0])


def test_annealing_goes_in_a_straight_line_and_moves_no_choice():
    model, outputs = selected().train(), []
    for progress, tau in ((0, 10.0), (0.5, 5.05), (1, 0.1)):
        tokens.anneal(model, progress)
        assert float(model.blocks[2].selector.scorer.tau) == pytest.approx(tau)
        outputs.append(seeded(model, 2))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], seeded(model, 3))
    plain = vit()
    before = weights_of(plain)
    tokens.anneal(plain, 0.5)
    assert same(before, weights_of(plain))


def test_checkpointed_activations_give_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        model = selected().train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(4)
        backward(model)
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert same(*grads)


def test_a_scorer_learns_under_autocast():
    model = selected().train()
    with torch.autocast("cpu", torch.bfloat16):
        backward(model)
        assert lengths(model, batch(0)[0]) == [6, 6, 6, 6, 4, 4]
    for index in (0, 2):
        gradient = model.blocks[index].selector.scorer.weight.grad
        assert gradient.isfinite().all()
        assert gradient.abs().min() > 0


@pytest.mark.parametrize("method", ["omp", "gmp"])
@scorers
def test_tokens_and_weights_are_pruned_together(method, scorer):
    model = tokens.select(variant("class token"), 0.5, (0, 2), scorer)
    steps = {"omp": {}, "gmp": {"steps": 10, "interval": 2}}[method]
    sparsifier = getattr(methods, method)(model, 0.5, **steps)
    assert {name.split(".")[-2] for name in sparsifier.masks} == {"proj", "qkv", "fc1", "fc2", "head"}
    before = weights_of(model)
    run(model, adamw(model), sparsifier, range(11))
    assert sparsifier.density == pytest.approx(0.5, abs=1e-3)
    assert dead_are_zero(sparsifier)
    moved = {name for name, value in weights_of(model).items() if not torch.equal(value, before[name])}
    assert moved == {*before}
    assert all(value.isfinite().all() for value in weights_of(model).values())
    assert lengths(model, batch(0)[0]) == [6, 6, 6, 6, 4, 4]


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


# Cost and export


@pytest.mark.parametrize("scorer", SCORERS)
def test_multiply_accumulates_fall_as_counted_by_hand(scorer):
    model = selected(scorer=SCORERS[scorer])
    width, hidden, qkv = 16, 64, 3 * 16 * 16

    def block(length: int) -> int:
        return length * (4 * width * width + 2 * width * hidden) + 2 * length**2 * width

    looking = (10 + 6) * qkv if scorer == "attentive" else 0  # the qkv layer runs on all that arrive, too
    assert macs(model).total() == 9 * 16 * width + 2 * block(6) + block(4) + width * CLASSES + looking
    assert macs(variant("class token")).total() == 9 * 16 * width + 3 * block(10) + width * CLASSES


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


# Bad input

REFUSED = {
    "keep nothing": ({"keep": 0.0}, r"keep is 0\.0"),
    "keep more than all": ({"keep": 1.2}, r"keep is 1\.2"),
    "not a number": ({"keep": float("nan")}, "keep is nan"),
    "no such block": ({"at": (0, 3, -1)}, "block 3, -1; the model has blocks 0 to 2"),
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
    late.blocks[2].attn = Zero()
    with pytest.raises(ValueError, match=r"blocks\.2 and finds Zero;"):
        late(batch(0)[0])
    parallel = vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock)
    with pytest.raises(ValueError, match=r"blocks\.0 and finds ParallelScalingBlock;"):
        tokens.select(parallel, 0.5, 0, tokens.Attentive)


def test_a_mask_over_tokens_that_are_gone_is_refused():
    with pytest.raises(ValueError, match="takes no attention mask"):
        selected()(batch(0)[0], attn_mask=torch.zeros(10, 10))


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


@pytest.mark.parametrize(("arguments", "message"), [((1.5,), "progress is 1.5"), ((0.5, 1.0, 0.0), "must stay above")])
def test_a_temperature_that_makes_no_sense_is_refused(arguments, message):
    model = selected()
    with pytest.raises(ValueError, match=message):
        tokens.anneal(model, *arguments)
    assert float(model.blocks[0].selector.scorer.tau) == 1
