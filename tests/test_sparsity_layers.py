"""Which weights are covered: all of the usual layers, or else they are named, in the summary or in an error."""

import warnings
from collections.abc import Callable

import pytest
import torch
from tiny import STEPS, adamw, backward, dead_are_zero, made, same, vit, weights_of
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from svite import methods
from svite.sparsity.cut import element, fan_in
from svite.sparsity.layers import divided, units, weights
from svite.sparsity.pool import uniform


class Everything(nn.Module):
    """Layers of every kind that torch has matrices in."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 4, 8))
        self.embedding = nn.Embedding(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True)
        self.up = nn.ConvTranspose1d(4, 4, 3)
        self.down = nn.Conv1d(4, 4, 3, groups=2)
        self.recurrent = nn.GRU(8, 8)
        self.both = nn.Bilinear(8, 8, 4)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)


COVERED = [
    *("attention.in_proj_weight", "attention.out_proj.weight", "cross.q_proj_weight", "cross.k_proj_weight"),
    *("cross.v_proj_weight", "cross.out_proj.weight", "up.weight", "down.weight", "head.weight"),
]
UNCOVERED = ["position", "embedding.weight", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "both.weight"]


def test_every_matrix_is_covered_or_named_in_the_summary():
    torch.manual_seed(0)
    model = Everything()
    sparsifier = methods.omp(model, 0.3, pool=uniform)
    assert list(sparsifier.weights) == COVERED
    assert list(sparsifier.uncovered) == UNCOVERED
    nonzero = sum(int(weight.count_nonzero()) for weight in sparsifier.weights.values())
    assert nonzero / sum(weight.numel() for weight in sparsifier.weights.values()) == sparsifier.density
    assert sparsifier.density == pytest.approx(0.3, abs=1e-2)
    table = sparsifier.summary().set_index("unit")
    assert list(table.index) == COVERED + UNCOVERED
    assert table.target.isna().tolist() == [False] * len(COVERED) + [True] * len(UNCOVERED)
    assert table["shape"]["position"] == "1x4x8"
    assert (table.achieved[UNCOVERED] == 1).all()


def test_what_layers_leaves_out_is_named_too():
    sparsifier = methods.omp(vit(), 0.5, layers=["head"])
    assert {"blocks.0.attn.qkv.weight", "pos_embed"} < sparsifier.uncovered.keys()


def test_gates_and_scales_count_by_themselves():
    assert not made("vtp", vit()).uncovered
    assert not made("layer", vit()).uncovered


def test_an_attention_layer_is_chosen_by_its_name():
    assert list(weights(Everything(), ["cross"])) == [
        name for name in COVERED if name.startswith("cross.") and "_w" in name
    ]
    assert list(weights(Everything(), ["attention*"])) == ["attention.in_proj_weight", "attention.out_proj.weight"]


@pytest.mark.parametrize("method", ["svite", "gmp", "srigl"])
def test_torchs_transformer_trains_at_the_density_that_is_said(method):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    sparsifier, optimizer = made(method, model), adamw(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        inputs = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(step))
        (model(inputs) - inputs.flip(1)).square().mean().backward()
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    assert dead_are_zero(sparsifier)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    nonzero = sum(int(matrix.count_nonzero()) for matrix in matrices)
    assert nonzero / sum(matrix.numel() for matrix in matrices) == pytest.approx(0.5, abs=0.03)
    assert sparsifier.updates


def test_a_transposed_convolution_is_cut_into_single_weights_only():
    model = nn.Sequential(nn.Conv2d(4, 8, 2), nn.ConvTranspose2d(8, 4, 2))
    assert [unit.name for unit in units(model)] == ["0.weight", "1.weight"]
    sparse, dense = divided(model, fan_in())
    assert ([unit.name for unit in sparse], [unit.name for unit in dense]) == (["0.weight"], ["1.weight"])
    assert not divided(model, element())[1]
    table = methods.nm(model, 0.5, STEPS).summary().set_index("unit")
    assert table.achieved.to_dict() == {"0.weight": 0.5, "1.weight": 1.0}
    with pytest.raises(ValueError, match=r"does not divide 1\.weight; leave these out of `layers`"):
        methods.srigl(model, 0.5, STEPS)


# Weights that are none


def _bytes(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)


class Wrapped(torch.Tensor):
    """A tensor whose numbers lie elsewhere, as quantized ones do."""

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError


def _elsewhere(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(torch.Tensor._make_wrapper_subclass(Wrapped, layer.weight.shape), requires_grad=False)


SPOILED: dict[str, Callable[[nn.Linear], object]] = {
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "parametrized weight norm": parametrizations.weight_norm,
    "parametrized spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned by torch": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "parametrized": lambda layer: parametrize.register_parametrization(layer, "weight", nn.Identity()),
    "bytes": _bytes,
    "another tensor": _elsewhere,
}


def spoiled(spoil: Callable[[nn.Linear], object]) -> nn.Module:
    model = vit()
    backward(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old ones are deprecated, and still there
        spoil(model.blocks[0].mlp.fc1)
    return model


@pytest.mark.parametrize("method", ["omp", "rigl", "nm", "srigl", "block", "s2vite", "group", "vtp", "sviteplus"])
@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_weight_that_is_no_plain_parameter_is_refused_by_name_and_nothing_changes(method, spoil):
    model = spoiled(spoil)
    before, shape = {n: v for n, v in weights_of_plain(model).items()}, repr(model)
    with pytest.raises(
        ValueError, match=r"weight of blocks\.0\.mlp\.fc1 is .*`layers`\.$|blocks\.0\.mlp\.fc1(\.weight)? is .*no plain"
    ):
        made(method, model)
    assert repr(model) == shape
    assert same(before, weights_of_plain(model))
    assert not model._forward_pre_hooks


def weights_of_plain(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: v.clone() for n, v in model.state_dict().items() if type(v) is not Wrapped}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_layers_leaves_out_what_can_not_be_pruned(spoil):
    sparsifier = methods.omp(spoiled(spoil), 0.5, layers=["head", "blocks.0.attn.*"])
    assert any(name.startswith("blocks.0.mlp.fc1.") for name in sparsifier.uncovered)
    assert sparsifier.density == pytest.approx(0.5, abs=1e-3)


def test_quantized_and_lazy_layers_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is deprecated or new says so, once a process
        quantized = nn.Sequential(nn.Linear(4, 4), torch.ao.nn.quantized.dynamic.Linear(4, 4))
        lazy = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4))
    with pytest.raises(ValueError, match="weight of 1 is no parameter but quantized"):
        methods.omp(quantized, 0.5)
    assert methods.omp(quantized, 0.5, layers=["0"]).density == 0.5
    with pytest.raises(ValueError, match=r"1\.weight has no shape yet, for its layer is lazy"):
        methods.omp(lazy, 0.5)


@pytest.mark.parametrize("method", methods.__all__)
def test_a_model_without_values_or_that_never_trains_is_refused_by_every_method(method):
    with torch.device("meta"):
        empty = vit()
    keys = list(empty.state_dict())
    with pytest.raises(ValueError, match=r"^cls_token is on the meta device and has no values"):
        getattr(methods, method)(
            empty, 0.5, *([0.5, STEPS] if method == "s2vite" else [] if method in ("omp", "snip") else [STEPS])
        )
    assert list(empty.state_dict()) == keys
    model = vit()
    before, shape = weights_of(model), repr(model)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"^Nothing can be pruned under torch\.inference_mode"):
        getattr(methods, method)(
            model, 0.5, *([0.5, STEPS] if method == "s2vite" else [] if method in ("omp", "snip") else [STEPS])
        )
    assert same(before, weights_of(model))
    assert repr(model) == shape
    with torch.inference_mode():
        model = vit()
    with pytest.raises(ValueError, match=r"^cls_token was made under torch\.inference_mode and never trains"):
        getattr(methods, method)(
            model, 0.5, *([0.5, STEPS] if method == "s2vite" else [] if method in ("omp", "snip") else [STEPS])
        )
