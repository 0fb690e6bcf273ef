"""ONNX of shrunk and token-pruned models: the same numbers in ONNX Runtime at every batch size, or no file."""

import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
from tiny import same, vit, weights_of
from torch import Tensor, nn

from svite.io import export as module
from svite.io.export import export
from svite.tokens import Attentive, select
from svite.vit.gather import gather_inputs
from svite.vit.parts import Select, Zero
from svite.vit.shrink import shrink


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def pruned() -> nn.Module:
    """A head, neurons, two branches and input features less, and patch tokens removed twice: 9, then 5, then 3."""
    model = vit(depth=3)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    model.blocks[0].attn.proj.weight[:, 8:] = 0
    model.blocks[0].attn.qkv.weight[:, [1, 4, 15]] = 0
    model.blocks[1].mlp.fc1.weight[[3, 5, 60]] = 0
    model.blocks[2].attn.proj.weight.zero_()
    model.blocks[2].mlp.fc2.weight.zero_()
    model.blocks[2].mlp.fc2.bias.zero_()
    model = gather_inputs(shrink(model, branches=True))
    select(model, 0.6, at=1, scorer=Attentive)
    return select(model, 0.5, at=2)


@dataclass
class Exported:
    model: nn.Module
    path: Path
    difference: float
    before: dict[str, Tensor]

    @torch.no_grad()
    def logits(self, batch: Tensor) -> Tensor:
        return deepcopy(self.model).eval()(batch)

    def run(self, batch: Tensor) -> Tensor:
        session = onnxruntime.InferenceSession(self.path)
        return torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    """A model cut in every way, in training mode, exported by the look of a single image."""
    model, path = pruned(), tmp_path_factory.mktemp("export") / "run.onnx"
    model.train()
    model.blocks[1].eval()
    before = weights_of(model)
    return Exported(model, path, export(model, path, images(1)), before)


def test_the_model_is_cut_in_every_way(exported):
    kinds = [type(module) for module in exported.model.modules()]
    assert kinds.count(Zero) == 2
    assert Select in kinds
    assert exported.model.blocks[0].attn.num_heads == 1
    assert [hasattr(block, "selector") for block in exported.model.blocks] == [False, True, True]


def test_exporting_changes_nothing(exported):
    assert [block.training for block in exported.model.blocks] == [True, False, True]
    assert same(weights_of(exported.model), exported.before)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_onnx_runtime_finds_the_same_logits_at_every_batch_size(exported, count):
    batch = images(count, seed=count)
    assert exported.run(batch).shape == (count, 5)
    assert float((exported.run(batch) - exported.logits(batch)).abs().max()) < 1e-4


def test_tokens_are_removed_in_the_graph_too(exported):
    graph = onnx.shape_inference.infer_shapes(onnx.load(exported.path)).graph
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.value_info}
    lengths = [shapes[node.output[0]][1] for node in graph.node if node.op_type == "LayerNormalization"]
    assert list(dict.fromkeys(lengths)) == [10, 6, 4]


def test_the_largest_difference_is_told(exported):
    batch = images(1)
    assert exported.difference < 1e-4
    assert exported.difference == float((exported.run(batch) - exported.logits(batch)).abs().max())


def test_the_graph_names_what_goes_in_and_out_and_where_it_was_made_stays_out(exported):
    graph = onnx.load(exported.path).graph
    [entry], [exit_] = graph.input, graph.output
    assert (entry.name, exit_.name) == ("images", "logits")
    assert [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim] == ["batch", 1, 12, 12]
    assert Path(timm.__file__).parent.as_posix().encode() not in exported.path.read_bytes()


def test_all_weights_are_in_the_one_file(exported):
    onnx.checker.check_model(onnx.load(exported.path, load_external_data=False))
    assert list(exported.path.parent.iterdir()) == [exported.path]


# No file


def test_a_graph_of_other_numbers_is_refused_and_the_old_file_stays(exported, tmp_path, monkeypatch):
    path = tmp_path / "run.onnx"
    path.write_text("what was there before")
    monkeypatch.setattr(module, "_write", lambda model, path, images: path.write_bytes(exported.path.read_bytes()))
    with pytest.raises(ValueError, match=r"ONNX Runtime's logits differ by .*, past the 0.0001 tolerated"):
        export(vit(), path, images(2))
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_that_cannot_be_traced_is_refused(tmp_path):
    class Undecided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError("it depends")

    with pytest.raises(ValueError, match=r"^Undecided can't be exported \(NotImplementedError: it depends\)\.$"):
        export(Undecided(), tmp_path / "run.onnx", images(2))
    assert not list(tmp_path.iterdir())


def test_a_hook_that_changes_the_outputs_is_not_lost_in_silence(exported, tmp_path, monkeypatch):
    doubled = deepcopy(exported.model)
    doubled.head.register_forward_hook(lambda layer, inputs, output: 2 * output)
    monkeypatch.setattr(module, "_write", lambda model, path, images: path.write_bytes(exported.path.read_bytes()))
    with pytest.raises(ValueError, match="ONNX Runtime's logits differ by"):
        export(doubled, tmp_path / "run.onnx", images(2))


def test_not_a_number_is_no_agreement(exported, tmp_path, monkeypatch):
    broken = deepcopy(exported.model)
    nn.init.constant_(broken.head.bias, torch.nan)
    monkeypatch.setattr(module, "_write", lambda model, path, images: path.write_bytes(exported.path.read_bytes()))
    with pytest.raises(ValueError, match="ONNX Runtime's logits differ by inf"):
        export(broken, tmp_path / "run.onnx", images(2))


def test_other_types_than_float32_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Only float32 models can be exported, and cls_token is torch.bfloat16"):
        export(vit().bfloat16(), tmp_path / "run.onnx", images(2))
    assert not list(tmp_path.iterdir())


def test_no_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There are no images to check the export on"):
        export(vit(), tmp_path / "run.onnx", images(0))


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"svite.export needs {name}; `pip install svite\[onnx\]`"):
        export(vit(), tmp_path / "run.onnx", images(2))
