"""Deployed layers whose tensors were altered: refused in one sentence, where a kernel would leave its memory."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from tiny import vit
from torch import Tensor, nn

from svite.deployment.blocks import columns_of
from svite.deployment.compiled import kernels_are_there
from svite.deployment.deploy import deploy
from svite.deployment.weights import CHUNK, FORMATS

pytestmark = pytest.mark.xdist_group("deploy")  # the kernels are compiled once
OUTPUTS, INPUTS = 128, 224
SAID = "indices of a layer do not lead to its weights"


@pytest.fixture(scope="module", autouse=True)
def kernels():
    assert kernels_are_there()


def layer_of(kind: str) -> nn.Module:
    """A layer with two panels, or blocks, of which some are dead."""
    torch.manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS) * (torch.rand(OUTPUTS // 32, INPUTS // 32) < 0.5).repeat_interleave(
        32, 0
    ).repeat_interleave(32, 1)
    return FORMATS[kind](weight, torch.randn(OUTPUTS))


def columns() -> Tensor:
    return columns_of(torch.randn(2, 20, INPUTS, generator=torch.Generator().manual_seed(1)))


def put(name: str, place: int, value: int) -> Callable[[nn.Module], None]:
    def change(layer: nn.Module) -> None:
        with torch.no_grad():
            getattr(layer, name).view(-1)[place] = value

    return change


def swapped(layer: nn.Module) -> None:
    """Two rows of different chunks, which different threads may work on."""
    layer.order[0, [0, CHUNK]] = layer.order[0, [CHUNK, 0]]


ALTERED = {
    "a column far away": ("csr", put("columns", 7, 30000)),
    "a column before the first": ("csr", put("columns", 7, -30000)),
    "a column of the next panel": ("csr", put("columns", -1, INPUTS // 2)),
    "values in bfloat16": ("csr-bf16", put("columns", 0, 30000)),
    "a row that is not there": ("csr", put("order", 3, 10**6)),
    "a row before the first": ("csr", put("order", 3, -(10**6))),
    "a row twice": ("csr", lambda layer: layer.order[0, :2].fill_(0)),
    "rows of two chunks": ("csr", swapped),
    "an end far away": ("csr", put("starts", -1, 2**30)),
    "a start before the first": ("csr", put("starts", 0, -(2**30))),
    "a row that ends before it starts": ("csr", put("starts", 9, 10**5)),
    "a block far away": ("block16", put("columns", 0, 2**20)),
    "a block one too far": ("block32", put("columns", 0, INPUTS // 32)),
    "a block before the first": ("block16", put("columns", 0, -(2**20))),
    "an end of blocks far away": ("block16", put("starts", -1, 2**20)),
}


@pytest.mark.parametrize("case", ALTERED)
def test_altered_indices_are_refused_however_they_come(case):
    kind, change = ALTERED[case]
    sound, altered = layer_of(kind), layer_of(kind)
    expected = sound(columns())
    change(altered)
    with pytest.raises(RuntimeError, match="altered indices do not fit"):
        altered(columns())
    for assign in (False, True):
        target = layer_of(kind)
        with pytest.raises(RuntimeError, match=SAID):
            target.load_state_dict(altered.state_dict(), assign=assign)
        assert torch.equal(target(columns()), expected)  # it took nothing
    with pytest.raises(ValueError, match=SAID):
        copy.deepcopy(altered)
    file = io.BytesIO()
    torch.save(altered, file)
    file.seek(0)
    with pytest.raises(ValueError, match=SAID):
        torch.load(file, weights_only=False)


@pytest.mark.parametrize("case", ALTERED)
def test_a_layer_that_has_run_is_checked_again_when_it_was_altered(case):
    kind, change = ALTERED[case]
    layer = layer_of(kind)
    expected = layer(columns())
    kept = copy.deepcopy(layer.state_dict())
    change(layer)
    with pytest.raises(RuntimeError, match="altered indices do not fit"):
        layer(columns())
    with pytest.raises(ValueError, match=SAID):
        layer.to(torch.float32)
    layer.load_state_dict(kept)
    assert torch.equal(layer(columns()), expected)


def exchanged(layer: nn.Module) -> None:
    torch.utils.swap_tensors(layer.columns, torch.full_like(layer.columns, 30000))


BEHIND = {
    "registered": lambda layer: layer.register_buffer("columns", torch.full_like(layer.columns, 30000)),
    "exchanged": exchanged,
}


@pytest.mark.parametrize("kind", ["csr", "block16"])
@pytest.mark.parametrize("way", BEHIND)
def test_indices_that_are_other_tensors_are_refused(kind, way):
    layer = layer_of(kind)
    BEHIND[way](layer)
    with pytest.raises(RuntimeError, match="altered indices do not fit"):
        layer(columns())


@pytest.mark.parametrize("kind", ["csr", "block16"])
def test_a_layer_that_was_sent_to_another_process_still_works_here_and_there(kind):
    layer = layer_of(kind)
    expected = layer(columns())
    sent = ForkingPickler.dumps(layer)  # moves the storages into shared memory
    assert torch.equal(layer(columns()), expected)
    assert torch.equal(pickle.loads(sent)(columns()), expected)


@pytest.mark.parametrize("kind", ["csr", "block16"])
def test_indices_of_a_call_alone_are_refused_too(kind):
    layer = layer_of(kind)
    with pytest.raises(RuntimeError, match="altered indices do not fit"):
        torch.func.functional_call(layer, {"columns": torch.full_like(layer.columns, 30000)}, (columns(),))


@pytest.mark.parametrize("kind", ["csr", "block16"])
def test_a_layer_made_or_moved_in_inference_mode_tells_too_what_was_written_to_it(kind):
    expected = layer_of(kind)(columns())
    with torch.inference_mode():
        layers = [layer_of(kind), copy.deepcopy(layer_of(kind)), layer_of(kind).to(torch.float32)]
    for layer in layers:
        assert torch.equal(layer(columns()), expected)
        with torch.inference_mode():
            layer.columns.fill_(30000)
        with pytest.raises(RuntimeError, match="altered indices do not fit"):
            layer(columns())


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    return lambda layer: setattr(layer, name, change(getattr(layer, name)))


def shorter(tensor: Tensor) -> Tensor:
    return tensor[:-1].contiguous()


def strided(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], -1)[..., 0]


SHAPES = {
    **{f"{name} of {kind}, {change.__name__}": (kind, replaced(name, change))
       for kind, names in {"dense": ("weight", "bias"), "csr": ("order", "starts", "columns", "values", "bias"),
                           "csr-bf16": ("values",), "block16": ("starts", "columns", "values", "bias")}.items()
       for name in names for change in (shorter, strided, Tensor.half, Tensor.long)},
    "blocks of another size": ("block16", replaced("values", lambda v: v[:, :15, :15].contiguous())),
    "blocks that are no squares": ("block16", replaced("values", lambda v: v[:, :8].contiguous())),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("ran", [True, False])
def test_other_shapes_types_and_strides_are_refused(case, ran):
    kind, change = SHAPES[case]
    layer = layer_of(kind)
    if ran:
        layer(columns())
    change(layer)
    with pytest.raises(RuntimeError, match=r"deploy the model again|expected scalar type"):
        layer(columns())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, :-1].contiguous(),
        lambda x: torch.cat([x, x], 1),
        lambda x: x[:, :, :-1].contiguous(),
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x[0],
        lambda x: x.double(),
    ],
)
def test_other_activations_are_refused(kind, change):
    layer = layer_of(kind)
    operator, read = getattr(torch.ops.svite, layer.kernel), [getattr(layer, name) for name in layer.read]
    call = lambda x, residual=None: operator(x, *read, *layer.sizes, layer.bias, residual, False)
    with pytest.raises(RuntimeError, match=r"do not fit|expected scalar type"):
        call(change(columns()))
    with pytest.raises(RuntimeError, match=r"residual sums do not fit|expected scalar type"):
        call(columns(), change(torch.randn(2, OUTPUTS, 32)))


def test_norms_and_attention_refuse_other_sizes():
    ops, x = torch.ops.svite, columns()
    for weight in (torch.ones(INPUTS - 1), torch.ones(2 * INPUTS)[::2]):
        with pytest.raises(RuntimeError, match="gains of a norm do not fit"):
            ops.layer_norm(x, weight, None, 1e-6)
    for heads, images, tokens in ((0, 1, 20), (5, 1, 20), (1, 2, 20), (1, 1, 33), (1, 0, 20), (1, 1, 0)):
        with pytest.raises(RuntimeError, match="queries, keys and values do not fit"):
            ops.attention(torch.randn(2, 192, 32), heads, images, tokens, 1.0)


def test_layers_in_inference_mode_are_checked_once_and_run():
    with torch.inference_mode():
        layer = layer_of("csr")
        expected = layer(columns())
        assert torch.equal(copy.deepcopy(layer)(columns()), expected)
    assert torch.equal(layer(columns()), expected)


def test_a_layer_takes_the_indices_of_another_and_moves():
    layer, expected = layer_of("csr"), layer_of("csr")(columns())
    for assign in (False, True):
        layer.load_state_dict(layer_of("csr").state_dict(), assign=assign)
        assert torch.equal(layer(columns()), expected)
    assert torch.equal(copy.deepcopy(layer).double().float()(columns()), expected)


def test_checking_costs_a_call_nothing(monkeypatch):
    layer = layer_of("csr")
    monkeypatch.setattr(type(layer), "check", lambda *_: pytest.fail("it was checked again"))
    layer(columns())


ALTER = """
import sys
import svite.vit._torchvision, torch
model, images = torch.load(sys.argv[1], weights_only=False)
for layer in model.modules():
    if hasattr(layer, "columns"):
        layer.columns.fill_(30000)
        layer.starts[1:-1] = 2**30
try:
    model(images)
except RuntimeError as error:
    print(error)
"""


def test_a_deployed_model_that_was_altered_ends_no_process(tmp_path):
    images = torch.randn(2, 1, 12, 12)
    names = [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    torch.save((deploy(vit(), images, choice=dict.fromkeys(names, "csr")), images), tmp_path / "model.pt")
    command = [sys.executable, "-c", ALTER, str(tmp_path / "model.pt")]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "altered indices do not fit" in done.stdout
