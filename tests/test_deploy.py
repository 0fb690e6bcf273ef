"""Deployed models: the outputs of the masked model, in every format, and what is refused."""

import itertools
from functools import partial
from threading import Thread

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config
from timm.layers.activations import GELU
from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import ParallelScalingBlock
from tiny import vit
from tiny_cuts import VARIANTS, everything_cut, model_of
from torch import Tensor, nn
from torch.nn.utils import prune

import svite
from svite import methods, tokens
from svite.deployment import choose
from svite.deployment.blocks import columns_of, rows_of
from svite.deployment.choose import EAGER, Chooser
from svite.deployment.compiled import kernels_are_there
from svite.deployment.deploy import deploy
from svite.deployment.weights import CHUNK, FORMATS, Csr, fitting
from svite.vit.gates import fold
from svite.vit.gather import gather_inputs
from svite.vit.shrink import shrink

pytestmark = pytest.mark.xdist_group("deploy")  # the kernels are compiled once
RANDOM = itertools.cycle(["dense", "csr", "block16"])


@pytest.fixture(scope="module", autouse=True)
def kernels():
    assert kernels_are_there()


def sparse(outputs: int, inputs: int, density: float, side: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    alive = torch.rand(outputs // side, inputs // side, generator=generator) < density
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight * alive.repeat_interleave(side, 0).repeat_interleave(side, 1)


def images(count: int = 5) -> Tensor:
    return torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(1))


def halved(model: nn.Module) -> nn.Module:
    """Half of all weights dead, of which whole squares of 16, so that every format has something to skip."""
    with torch.no_grad():
        for seed, weight in enumerate(p for p in model.blocks.parameters() if p.dim() == 2):
            weight.mul_(sparse(*weight.shape, 0.5, seed=seed) != 0)
            weight[:16, :16] = 0
    return model


def choice_of(model: nn.Module, formats) -> dict[str, str]:
    """A format for each linear layer of the blocks; dense where there are no squares of 16."""
    weights = {name.removesuffix(".weight"): p for name, p in model.named_parameters() if "blocks" in name}
    layers = {n: w for n, w in weights.items() if w.dim() == 2 and n.endswith(("qkv", "proj", "fc1", "fc2"))}
    asked = {name: next(formats) for name in layers}
    return {n: f if f != "block16" or all(s % 16 == 0 for s in layers[n].shape) else "dense" for n, f in asked.items()}


def relative(expected: Tensor, found: Tensor) -> float:
    return float(((expected - found).abs().max() / expected.abs().max()).detach())


# ---- the kernels --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 40) | st.integers(90, 200), st.integers(1, 70) | st.integers(180, 400),
    st.integers(1, 230), st.floats(0, 1), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from(["dense", "csr"]),
)  # fmt: skip
def test_a_layer_is_torchs_linear(count, outputs, inputs, length, density, biased, added, activated, format):
    rows = torch.randn(count, length, inputs)
    weight = sparse(outputs, inputs, density)
    bias = torch.randn(outputs) if biased else None
    residual = torch.randn(count, length, outputs) if added and not activated else None
    expected = F.linear(rows, weight, bias)
    expected = F.gelu(expected) if activated else expected + (0 if residual is None else residual)
    layer = FORMATS[format](weight, bias)
    found = layer(columns_of(rows), None if residual is None else columns_of(residual), activated)
    assert torch.allclose(rows_of(found, length), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("density", "panels"), [(1.0, 4), (0.2, 4), (0.1, 3), (0.05, 1), (0.0, 1)])
def test_panels_are_as_narrow_as_a_row_has_enough_in_them(density, panels):
    layer = Csr(sparse(250, 400, density), None)
    assert layer.order.shape == (panels, 250)
    counts = layer.starts.diff().view(panels, 250)
    for order, alive in zip(layer.order, counts, strict=True):
        for chunk in range(0, 250, CHUNK):
            assert sorted(order[chunk : chunk + CHUNK].tolist()) == list(range(chunk, min(chunk + CHUNK, 250)))
            assert (alive[chunk : chunk + CHUNK].diff() >= 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 210), st.sampled_from([16, 32]), st.floats(0, 1))
def test_blocks_are_torchs_linear(up, across, length, side, density):
    rows, weight = torch.randn(2, length, across * side), sparse(up * side, across * side, density, side)
    layer = FORMATS[f"block{side}"](weight, None)
    assert layer.values.shape[0] == (weight != 0).sum() // side**2
    assert torch.allclose(rows_of(layer(columns_of(rows)), length), F.linear(rows, weight), atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 20),
    st.integers(1, 40) | st.integers(150, 210), st.floats(0.1, 30),
)  # fmt: skip
def test_attention_is_torchs(count, together, heads, width, length, spread):
    qkv = torch.randn(count * together, length, 3, heads, width) * spread
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    expected = exact.transpose(1, 2).flatten(2).float()
    sequences = columns_of(qkv.reshape(count, together * length, -1))
    found = torch.ops.svite.attention(sequences, heads, together, length, width**-0.5)
    assert found.isfinite().all()  # of the padding, too
    rounding = 1e-4 + 2e-6 * spread**3  # scores grow by its square, and what is averaged by it
    rows = rows_of(found, together * length).reshape(expected.shape)
    assert torch.allclose(rows, expected, atol=rounding, rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 90), st.integers(1, 210), st.floats(-30, 30))
def test_layer_norm_is_torchs(count, features, length, mean):
    rows, weight, bias = torch.randn(count, length, features) + mean, torch.randn(features), torch.randn(features)
    expected = F.layer_norm(rows, (features,), weight, bias, 1e-6)
    found = rows_of(torch.ops.svite.layer_norm(columns_of(rows), weight, bias, 1e-6), length)
    assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("spoilt", range(3))
def test_attention_to_what_is_no_number_is_no_number(spoilt):
    qkv = torch.randn(1, 20, 3 * 8)
    qkv[0, 5, 8 * spoilt : 8 * (spoilt + 1)] = torch.nan
    found = rows_of(torch.ops.svite.attention(columns_of(qkv), 2, 1, 20, 0.5), 20).isnan().all(2)[0]
    assert found.nonzero().flatten().tolist() == ([5] if spoilt == 0 else list(range(20)))


def test_formats_that_skip_nothing_are_not_tried():
    assert fitting(torch.ones(32, 32)) == ["dense"]
    assert fitting(sparse(32, 64, 0.5)) == ["dense", "csr"]
    assert fitting(sparse(32, 64, 0.3, 32)) == ["dense", "csr", "block16", "block32"]
    assert fitting(sparse(48, 64, 0.3, 16)) == ["dense", "csr", "block16"]


# ---- whole models -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("another activation", "post norm")])
def test_a_deployed_model_has_the_outputs_of_the_masked_one(name):
    model = halved(model_of(**VARIANTS[name]))
    choice = choice_of(model, RANDOM)
    fast = deploy(model, images(), choice=choice)
    assert fast.choice == choice
    expected, found = model(images()), fast(images())
    assert relative(torch.stack(list(expected)), torch.stack(list(found))) < 1e-4


@pytest.mark.parametrize("name", ["another activation", "post norm"])
def test_blocks_of_another_kind_stay_as_they_are(name):
    model = model_of(**VARIANTS[name])
    fast = deploy(model, images())
    assert set(fast.choice.values()) == {EAGER}
    assert torch.equal(fast(images()), model(images()))


class OtherLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


class OtherNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) * 2


class OtherGelu(nn.GELU):
    def forward(self, x):
        return super().forward(x) * 2


class OtherScale(nn.Module):
    gamma = torch.ones(16)

    def forward(self, x):
        return x * 2


OTHERS = {
    "mlp.fc1": lambda: OtherLinear(16, 64),
    "attn.proj": lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)),
    "norm1": lambda: OtherNorm(16),
    "mlp.act": OtherGelu,
    "ls2": OtherScale,
}


@pytest.mark.parametrize("part", OTHERS)
def test_a_block_with_a_part_of_another_kind_stays_as_it_is(part):
    model = halved(model_of())
    model.blocks[0].set_submodule(part, OTHERS[part]())
    choice = choice_of(model, RANDOM)
    rest = {name: format for name, format in choice.items() if name.startswith("blocks.1")}
    fast = deploy(model, images(), choice=rest)
    assert fast.choice == {"blocks.0": EAGER} | rest
    assert relative(model(images()), fast(images())) < 1e-4


def test_timms_own_gelu_is_gelu():
    model = halved(model_of(act_layer="gelu"))
    assert type(model.blocks[0].mlp.act) is GELU
    assert EAGER not in deploy(model, images(), choice=choice_of(model, RANDOM)).choice.values()


def test_supported_and_other_blocks_live_side_by_side():
    model = halved(vit(depth=4).eval())
    model.blocks[2] = ParallelScalingBlock(16, 2).eval()
    choice = choice_of(nn.ModuleDict({"blocks": model.blocks[:2]}), RANDOM) | {"blocks.2": EAGER, "blocks.3": EAGER}
    fast = deploy(model, images(), choice=choice)
    assert [type(block).__name__ for block in fast.blocks] == ["FusedBlocks", "ParallelScalingBlock", "Block"]
    assert relative(model(images()), fast(images())) < 1e-4


@pytest.mark.parametrize("scorer", [tokens.Learned, tokens.Attentive])
def test_tokens_are_removed_in_a_deployed_model_too(scorer):
    model = tokens.select(halved(vit(depth=3).eval()), 0.5, (0, 2), scorer)
    fast = deploy(model, images(), choice=choice_of(model, RANDOM))
    seen = []
    fast.blocks[1].branches[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    assert relative(model(images()), fast(images())) < 1e-4
    assert set(seen) == {1 + 3}


def test_cut_and_gathered_models_are_deployed():
    model = everything_cut()
    fast = deploy(model, images(), choice=choice_of(model, itertools.cycle(["csr", "dense"])) | GATHERED)
    assert relative(model(images()), fast(images())) < 1e-4


GATHERED = {f"blocks.1.{layer}": "csr" for layer in ("attn.qkv", "attn.proj", "mlp.fc1")}


def test_gates_are_folded_first():
    model = vit(depth=2)
    methods.vtp(model, 0.5, 10)
    with torch.no_grad():
        for name, gate in model.named_parameters():
            if name.endswith("gate"):
                gate.copy_(torch.rand_like(gate) * (torch.rand_like(gate) > 0.3))
    expected = gather_inputs(shrink(fold(model), branches=True)).eval()(images())
    fast = deploy(model, images(), choice=choice_of(model, RANDOM))
    assert relative(expected, fast(images())) < 1e-4


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 4])
def test_threads_and_batches_change_nothing(threads, count):
    model = halved(model_of())
    choice, before = choice_of(model, RANDOM), torch.get_num_threads()
    fast = deploy(model, images(), choice=choice)
    try:
        torch.set_num_threads(1)
        expected = fast(images(count))
        torch.set_num_threads(threads)
        assert torch.equal(fast(images(count)), expected)
    finally:
        torch.set_num_threads(before)


def test_an_image_that_is_no_number_leaves_those_beside_it_alone():
    model = halved(model_of())
    fast, batch = deploy(model, images(), choice=choice_of(model, itertools.repeat("dense"))), images(4)
    expected = fast(batch)
    batch[1] = torch.nan
    found = fast(batch)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2, 3]], expected[[0, 2, 3]])


def test_python_threads_share_a_deployed_model():
    model = halved(model_of())
    fast, found = deploy(model, images(), choice=choice_of(model, RANDOM)), []
    expected = fast(images())
    threads = [Thread(target=lambda: found.extend(fast(images()) for _ in range(20))) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 60
    assert all(torch.equal(expected, output) for output in found)


def test_a_deployed_model_asks_for_no_gradient():
    model = halved(model_of())
    fast = deploy(model, images(), choice=choice_of(model, RANDOM))
    assert not fast(images().requires_grad_()).requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_deployed_in_inference_mode_runs_outside_of_it():
    model = halved(model_of())
    with torch.inference_mode():
        fast = deploy(model, images(), choice=choice_of(model, RANDOM))
    assert relative(model(images()), fast(images())) < 1e-4


def test_values_in_bfloat16_are_close():
    model = halved(model_of())
    fast = deploy(model, images(), choice=choice_of(model, itertools.cycle(["csr-bf16", "dense"])))
    assert fast.blocks[0].branches[0].qkv.values.dtype == torch.bfloat16
    assert 1e-6 < relative(model(images()), fast(images())) < 1e-2


def test_bfloat16_is_what_is_measured_when_asked_for(monkeypatch):
    monkeypatch.setattr(choose, "seconds", lambda layer, _: not isinstance(layer, Csr))  # on any machine
    chooser = Chooser(None, torch.randn(1, 200, 8), torch.bfloat16)
    layer = chooser.made("layer", sparse(256, 256, 0.02), None)
    assert (chooser.choice, layer.values.dtype) == ({"layer": "csr-bf16"}, torch.bfloat16)


def test_what_is_measured_is_valid_to_be_asked_for():
    model = vit(embed_dim=192, depth=1, num_heads=3).eval()
    methods.omp(model, 0.1, layers=["blocks.*"])
    fast = deploy(model, images(32))
    again = deploy(model, images(32), choice=fast.choice)
    assert again.choice == fast.choice
    assert set(fast.choice.values()) <= {"dense", "csr", "block16", "block32", EAGER}
    assert relative(model(images()), fast(images())) < 1e-4
    assert not any(hasattr(module, "choice") for module in model.modules())


def test_a_choice_is_saved_with_the_model(tmp_path):
    build = ("vit_tiny_patch16_224", {"img_size": 12, "patch_size": 4, "in_chans": 1, "num_classes": 5, "depth": 2})
    model = halved(timm.create_model(build[0], **build[1], embed_dim=16, num_heads=2).eval())
    build[1].update(embed_dim=16, num_heads=2)
    choice = deploy(model, images(), choice=choice_of(model, RANDOM)).choice
    svite.save(model, tmp_path / "m.safetensors", build=build, note={"choice": choice})
    loaded, _ = svite.load(tmp_path / "m.safetensors")
    from svite.io.saved import note_of

    fast = deploy(loaded, images(), choice=note_of(tmp_path / "m.safetensors")["choice"])
    assert relative(model(images()), fast(images())) < 1e-4


# ---- refused ------------------------------------------------------------------------------------


def test_training_a_deployed_model_is_refused():
    model = halved(model_of())
    fast = deploy(model, images(), choice=choice_of(model, RANDOM)).train()
    with pytest.raises(RuntimeError, match="A deployed model is for inference; train the model that it was made of"):
        fast(images())
    with pytest.raises(RuntimeError, match=r"takes float32 on the CPU, not torch\.float64"):
        fast.eval().blocks(torch.zeros(1, 10, 16, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="takes no attention mask"):
        fast(images(), attn_mask=torch.zeros(10, 10))
    with pytest.raises(RuntimeError, match="has no outputs of single blocks"):
        fast.get_intermediate_layers(images(), 1)


def deployed() -> nn.Module:
    model = model_of()
    return deploy(model, images(), choice=choice_of(model, itertools.cycle(["dense"])))


def pruned_by_torch() -> nn.Module:
    model = model_of()
    prune.l1_unstructured(model.blocks[0].mlp.fc1, "weight", 0.5)
    return model


REFUSED = {
    "another kind of model": (lambda: nn.Sequential(nn.Linear(2, 2)), {}, "Sequential is not timm's VisionTransformer"),
    "another dtype": (
        lambda: model_of().double(),
        {},
        r"is torch\.float64 on cpu; svite\.deploy takes float32 on the CPU",
    ),
    "no values": (lambda: model_of().to("meta"), {}, r"is on the meta device and has no values"),
    "a dtype for weights": (model_of, {"weights": torch.float16}, "as float32 or bfloat16, not as"),
    "one that is deployed": (deployed, {}, "The model is deployed already; deploy the one that it was made of"),
    "masks of torch's": (pruned_by_torch, {}, "holds the model's masks; make them permanent with its `remove`"),
    "a layer without a choice": (
        model_of,
        {"choice": {}},
        r"The choice for blocks\.0\.attn\.qkv is None; it should be",
    ),
    "an unknown format": (model_of, {"choice": {"blocks.0.attn.qkv": "fast"}}, "is 'fast'; it should be one of dense"),
    "squares that do not fit": (
        lambda: vit(embed_dim=24, num_heads=2),
        {
            "choice": dict.fromkeys(
                [f"blocks.0.{n}" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")], "block16"
            )
        },
        r"A weight of \(72, 24\) does not divide into blocks of 16 x 16",
    ),
    "a layer that is not there": (
        lambda: vit(),
        {"choice": {"blocks.0": EAGER, "blocks.7.attn.qkv": "csr"}},
        r"names blocks\.7\.attn\.qkv, which the model does not have",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_deployed_is_refused_in_one_sentence(case):
    make, arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        deploy(make(), images(), **arguments)


@pytest.mark.parametrize("choice", [["csr"], "csr", {"blocks.0.attn.qkv": ["csr"]}, {"blocks.0.attn.qkv": None}])
def test_a_choice_that_is_none_is_refused(monkeypatch, choice):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # a file may hold anything
    with pytest.raises(ValueError, match=r"The choice is .*; it should name a format for each layer\."):
        deploy(model_of(), images(), choice=choice)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="There are no images to measure on"):
        deploy(model_of(), images()[:0])


@pytest.mark.parametrize("shape", [(1, 12, 12), (2, 3, 12, 12), (2, 1, 30, 30)])
def test_images_that_the_model_does_not_take_are_one_sentence(monkeypatch, shape):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as users have it
    with pytest.raises(ValueError, match=r"^The model fails on images of shape \(.*\) \(.*\)\.$"):
        deploy(vit(), torch.zeros(shape))


def test_a_deployed_model_is_not_pruned():
    fast = deploy(vit(), images(), choice=choice_of(vit(), RANDOM))
    with pytest.raises(ValueError, match=r"^blocks\.0 is deployed and can't be pruned; prune the model that"):
        methods.omp(fast, 0.5)


# ---- advice -------------------------------------------------------------------------------------


def test_advice_has_a_line_for_each_shape_and_a_gain():
    model = vit(embed_dim=192, depth=2, num_heads=3, img_size=64)
    methods.omp(model, 0.05, layers=["blocks.*"])
    advice = svite.advise(model, batch=4)
    assert set(advice.shapes["layer"]) == {"576x192", "192x192", "768x192", "192x768"}
    assert (advice.shapes["csr_pays_from"] < 1).all()
    assert advice.gain > 1
    assert len(advice.layers) == 8
    assert (advice.layers["sparsity"] > 0.8).all()
    assert "csr_pays_from" in str(advice)


@pytest.mark.parametrize(("make", "batch", "message"), [
    (lambda: nn.Sequential(), 1, "nothing to advise"), (vit, 0, "The batch is 0"), (vit, 1.5, r"The batch is 1\.5"),
    (lambda: vit().half(), 1, r"cls_token is torch\.float16 on cpu; svite\.advise takes float32 on the CPU"),
    (lambda: vit().to("meta"), 1, "meta device"),
    (partial(vit, block_fn=ParallelScalingBlock), 1, "No block of the model holds a linear layer that can be deployed"),
])  # fmt: skip
def test_advice_that_makes_no_sense_is_refused(monkeypatch, make, batch, message):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as users have it
    with pytest.raises(ValueError, match=message):
        svite.advise(make(), batch)


@pytest.mark.parametrize("selecting", [False, True])
def test_a_deployed_model_has_no_feature_maps(selecting):
    model = vit(depth=2)
    fast = deploy(tokens.select(model, 0.5, 1) if selecting else model, images(), choice=choice_of(model, RANDOM))
    runs = len(fast.blocks)
    for refused in (fast.forward_intermediates, fast.get_intermediate_layers, FeatureGetterNet):
        with pytest.raises(RuntimeError, match=r"^A deployed model has no outputs of single blocks"):
            refused(fast if refused is FeatureGetterNet else images())
    assert len(fast.blocks) == runs
