"""How others run the same model: torch.compile, ONNX Runtime, OpenVINO, MKL's sparse product; needs `.[onnx,peers]`."""

import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svite.io.export import export

Predict = Callable[[Tensor], object]


def runtimes(model: nn.Module, images: Float[Tensor, "image channel height width"]) -> dict[str, Predict]:
    """The dense model as each of them runs it, one thread; what is not installed is left out."""
    found: dict[str, Predict] = {"torch.compile": torch.compile(deepcopy(model))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        if find_spec("onnxruntime"):
            export(model, path, images[:2])
            found["ONNX Runtime"] = _onnx_runtime(path)
            if find_spec("openvino"):
                found["OpenVINO"] = _openvino(path)
    return found


def _onnx_runtime(path: Path) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})


def _openvino(path: Path) -> Predict:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.convert_model(path), "CPU", settings)
    return lambda images: compiled(images.numpy())


class MklLinear(nn.Module):
    """A linear layer through torch.sparse: MKL's CSR product, which is what an ordinary user of torch gets."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch calls CSR a beta
            self.weight, self.bias = linear.weight.detach().to_sparse_csr(), linear.bias

    def forward(self, x: Float[Tensor, "*position inner"]) -> Float[Tensor, "*position outer"]:
        """W x + b."""
        product = (self.weight @ x.flatten(0, -2).T).T
        return (product if self.bias is None else product + self.bias).unflatten(0, x.shape[:-1])


def through_mkl(model: nn.Module) -> nn.Module:
    """A copy whose blocks' linear layers are MKL's."""
    copied = deepcopy(model)
    for layer in list(copied.blocks.modules()):
        for name, child in layer.named_children():
            if type(child) is nn.Linear:
                setattr(layer, name, MklLinear(child))
    return copied
