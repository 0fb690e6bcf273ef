"""Merged tokens against an oracle in plain loops, and what else a model that merges can do or refuses."""

import copy
import math
import pickle

import pytest
import torch
from tiny import VIT, adamw, backward, batch, logits, run, vit, weights_of
from tiny_tokens import lengths, variant, variants
from torch import Tensor, nn

import svite
from svite import methods, tokens
from svite.tokens.merger import merged
from svite.vit.cost import macs
from svite.vit.shrink import shrink
from svite.vit.verify import verify

IMAGES = batch(0, 4)[0]


def pair_up(metric: list[Tensor], gone: int) -> list[tuple[int, int]]:
    """Which even place joins which odd place, the most similar first; among equals the earlier."""
    cosine = {(i, j): float(nn.functional.cosine_similarity(metric[i], metric[j], dim=0))
              for i in range(0, len(metric), 2) for j in range(1, len(metric), 2)}  # fmt: skip
    best = {i: max(range(1, len(metric), 2), key=lambda j, i=i: cosine[i, j]) for i in range(0, len(metric), 2)}
    order = sorted(best, key=lambda i: -cosine[i, best[i]])
    return [(i, best[i]) for i in order[:gone]]


def by_hand(x: list[Tensor], sizes: list[float], metric: list[Tensor], gone: int) -> tuple[list[Tensor], list[float]]:
    """Means of what is merged: the even places that stay, then the odd ones."""
    pairs = pair_up(metric, gone)
    groups = [[i] for i in range(0, len(x), 2) if i not in dict(pairs)]
    groups += [[j, *(i for i, other in pairs if other == j)] for j in range(1, len(x), 2)]
    means = [sum(x[i] * sizes[i] for i in group) / sum(sizes[i] for i in group) for group in groups]
    return means, [sum(sizes[i] for i in group) for group in groups]


def oracle(plain: nn.Module, image: Tensor, r: dict[int, int], proportional: bool) -> Tensor:
    """Logits of one image, tokens merged by hand before each block, attention written out."""
    prefix = plain.num_prefix_tokens
    x = plain.norm_pre(plain._pos_embed(plain.patch_embed(image[None])))[0]
    sizes = [1.0] * len(x)
    for index, block in enumerate(plain.blocks):
        attn = block.attn
        if gone := min(r.get(index, 0), (len(x) - prefix) // 2):
            keys = attn.k_norm(attn.qkv(block.norm1(x)).view(len(x), 3, attn.num_heads, -1)[:, 1]).mean(1)
            left, whole = by_hand([*x[prefix:]], sizes[prefix:], [*keys[prefix:]], gone)
            x, sizes = torch.stack([*x[:prefix], *left]), sizes[:prefix] + whole
        qkv = attn.qkv(block.norm1(x)).view(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
        query, key, value = attn.q_norm(qkv[0]), attn.k_norm(qkv[1]), qkv[2]
        scores = query @ key.transpose(1, 2) / math.sqrt(attn.head_dim)
        scores = scores + torch.tensor(sizes).log() if proportional else scores
        x = x + block.ls1(attn.proj((scores.softmax(-1) @ value).transpose(0, 1).flatten(1)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return plain.forward_head(plain.norm(x[None]))[0]


@variants
@pytest.mark.parametrize("proportional", [True, False])
def test_merging_is_that_of_plain_loops(name, proportional):
    plain = variant(name).eval()
    model = tokens.merge(copy.deepcopy(plain), 2, (0, 2), proportional=proportional)
    with torch.no_grad():
        found = logits(model, IMAGES)
        for image, row in zip(IMAGES, found, strict=True):
            expected = oracle(plain, image, {0: 2, 2: 2}, proportional)
            torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, logits(plain, IMAGES), atol=1e-4)
    other = tokens.merge(copy.deepcopy(plain), 2, (0, 2), proportional=not proportional)
    assert not torch.allclose(found, logits(other, IMAGES), atol=1e-5)


def test_every_block_sees_fewer_tokens_and_never_less_than_half_of_them():
    model = tokens.merge(variant("registers"), 3)  # five prefix tokens and nine patches
    assert lengths(model, IMAGES) == [14, 14, 11, 11, 8, 8]
    assert lengths(tokens.merge(variant("no prefix"), 8, (0, 1, 2)), IMAGES) == [5, 5, 3, 3, 2, 2]


def test_the_most_similar_become_one_that_stands_for_all_of_their_patches():
    x = torch.tensor([[9.0], [1.0], [4.0], [5.0], [2.0]])[None]
    metric = torch.tensor([[0.0, 0], [1, 0], [0, 1], [-1, 0.1], [1, 0.01]])[None]  # places 1 and 3 are even patches
    left, sizes = merged(x, torch.tensor([[1.0, 3.0, 1.0, 1.0, 2.0]]), metric, 1, prefix=1)
    assert left.flatten().tolist() == pytest.approx([9, 5, 4, 1.4])
    assert sizes.tolist() == [[1, 1, 1, 5]]


def test_merging_nothing_is_the_model_itself():
    plain = variant("class token").eval()
    model = tokens.merge(copy.deepcopy(plain), 8, 2)
    assert torch.equal(model.blocks[0](x := torch.randn(2, 5, 16)), plain.blocks[0](x))
    with torch.no_grad():
        torch.testing.assert_close(
            tokens.merge(vit(img_size=4), 8, 0).eval()(IMAGES[..., :4, :4]), vit(img_size=4).eval()(IMAGES[..., :4, :4])
        )  # one patch alone


def test_it_trains_sparse_and_learns():
    model = tokens.merge(variant("class token"), 2)
    before = weights_of(model)
    sparsifier = methods.rigl(model, 0.5, 10, interval=2)
    run(model, adamw(model), sparsifier, range(10))
    assert {*weights_of(model)} == {*before}
    assert all(not torch.equal(value, before[name]) for name, value in weights_of(model).items())
    backward(model)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_what_is_shrunk_merges_as_before_and_costs_less():
    model = tokens.merge(variant("class token"), 2)
    methods.omp(model, 0.5, cut=svite.structures)
    small = shrink(model.eval())
    verify(model, small, IMAGES)
    assert lengths(small, IMAGES) == lengths(model, IMAGES) == [10, 10, 8, 8, 6, 6]
    assert macs(model).total() < macs(variant("class token")).total()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_merges_by_itself(copied):
    model = tokens.merge(variant("class token"), 2).eval()
    model(IMAGES)
    other = copied(model)
    carried = {id(block.selector.carried) for block in other.blocks[1:]}
    assert len(carried) == 1
    assert id(model.blocks[1].selector.carried) not in carried
    assert torch.equal(other(IMAGES), model(IMAGES))


def test_a_deployed_model_merges_as_before_or_is_refused():
    model = tokens.merge(variant("class token"), 2, proportional=False).eval()
    linear = [name for name, part in model.blocks.named_modules(prefix="blocks") if isinstance(part, nn.Linear)]
    with torch.no_grad():
        fast = svite.deploy(model, IMAGES, choice=dict.fromkeys(linear, "dense"))
        torch.testing.assert_close(fast(IMAGES), model(IMAGES), atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match=r"^Fused blocks can't weigh tokens"):
        svite.deploy(tokens.merge(variant("class token"), 2), IMAGES)


def test_an_exported_model_merges_as_before(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tokens.merge(variant("class token"), 2).eval()
    svite.export(model, tmp_path / "model.onnx", IMAGES)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(IMAGES).detach(), atol=1e-4, rtol=1e-3)


def test_what_would_be_wrong_is_refused_in_one_sentence(tmp_path):
    model, build = tokens.merge(variant("class token"), 2), ("vit_tiny_patch16_224", VIT | {"depth": 3})
    for act, complaint in (
        (lambda: svite.save(model, tmp_path / "model.safetensors", build=build), "Merger"),
        (lambda: svite.attention_maps(model, IMAGES), "removes tokens"),
        (lambda: tokens.kept(model, IMAGES), "no token selector"),
        (lambda: tokens.select(model, 0.5, 0), r"^The model merges tokens, and sizes would not follow"),
        (lambda: tokens.merge(model, 2), r"^The model selects or merges tokens already"),
        (lambda: model.blocks[1](torch.randn(1, 10, 16), attn_mask=torch.ones(1)), "takes no attention mask"),
    ):
        with pytest.raises(ValueError, match=complaint) as error:
            act()
        assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="no feature maps"):
        model.forward_intermediates(IMAGES)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"r": 0}, r"^r is 0; it must be a whole number of at least 1"),
        ({"at": 7}, r"^`at` names block 7"),
        ({"at": ()}, r"^`at` names no block"),
    ],
)
def test_an_argument_that_makes_no_sense_changes_nothing(arguments, complaint):
    model = variant("class token")
    with pytest.raises(ValueError, match=complaint):
        tokens.merge(model, **arguments)
    assert not any(hasattr(block, "selector") for block in model.blocks)
    model.forward_intermediates(IMAGES)
