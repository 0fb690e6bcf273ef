"""ONNX, for programs without Python."""

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svite.io.files import whole
from svite.sparsity.names import unwrapped
from svite.vit.mode import device_of, evaluating
from svite.vit.opaque import refuse_meta, refuse_opaque

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def export(
    model: nn.Module,
    path: str | Path,
    images: Float[Tensor, "image channel height width"],
    tolerance: float = 1e-4,
) -> float:
    """Write what a model computes in eval mode as ONNX, whole or not at all; its largest difference in ONNX Runtime.

    Dead heads and neurons, and tokens that are removed, cost nothing there if `svite.shrink` and `svite.tokens.select`
    came before; single dead weights are stored and multiplied as zeros. The graph takes `images` and gives `logits`,
    at any batch size. Before the file takes its place ONNX Runtime runs it, on all the images and on the first alone.

    Args:
        model: float32, any that torch.export can trace; not changed.
        path: of the file, "run.onnx" say.
        images: examples, at least one.
        tolerance: of the logits, relative to the largest of the model's own, or to 1 if that is larger.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: no images, or such as the model can't take; another dtype; what the model gives is no single tensor
            (a feature extractor's list, say); it can't be traced with a free batch size or has no ONNX form, or is
            deployed, quantized or without values; ONNX Runtime's logits differ by more than the tolerance.
        OSError: the file can't be written.
    """
    model = unwrapped(model)
    images = _checked(model, images)
    with evaluating(model):
        _refuse_no_logits(model, images[:1])
    with evaluating(model), whole(path) as temporary:
        _write(model, temporary, images)
        return _verified(model, temporary, images, tolerance)


def _checked(model: nn.Module, images: Tensor) -> Tensor:
    """The images, where the model is; an error says what keeps them from being exported."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(f"svite.export needs {', '.join(missing)}; `pip install svite[onnx]` brings all it needs.")
    if not len(images):
        raise ValueError("There are no images to check the export on; pass at least one.")
    refuse_meta(model, "svite.export")
    refuse_opaque(model, "svite.export")
    other = [f"{name} is {p.dtype}" for name, p in model.named_parameters() if p.dtype != torch.float32]
    if other:
        raise ValueError(f"Only float32 models can be exported, and {other[0]}; export `model.float()`.")
    return images.detach().to(device_of(model), torch.float32)


@torch.no_grad()
def _refuse_no_logits(model: nn.Module, image: Tensor) -> None:
    """ValueError for what would come to light at the end of an export, minutes later."""
    try:
        output = model(image)
    except Exception as error:  # whatever a model may raise
        raise _cannot(model, error) from error
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{type(model).__name__} gives a {type(output).__name__} and no tensor of logits, so it can't be exported; "
            "export the model that classifies."
        )


def _cannot(model: nn.Module, error: BaseException) -> ValueError:
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return ValueError(f"{type(model).__name__} can't be exported ({reason}).")


def _write(model: nn.Module, path: Path, images: Tensor) -> None:
    several = torch.cat([images, images])  # torch.export takes a batch of one for a constant
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # torch about itself
        try:
            program = torch.onnx.export(
                model,
                (several,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise _cannot(model, error.__cause__ or error) from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # source lines of the machine that exported
    program.save(path, external_data=False)


@torch.no_grad()
def _verified(model: nn.Module, path: Path, images: Tensor, tolerance: float) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference, scale = 0.0, 1.0
    for batch in (images, images[:1]):
        expected = model(batch).cpu()
        found = torch.from_numpy(session.run(["logits"], {"images": batch.cpu().numpy()})[0])
        difference = max(difference, float((found - expected).abs().nan_to_num(torch.inf).max()))
        scale = max(scale, float(expected.abs().max()))
    if difference > tolerance * scale:
        raise ValueError(
            f"ONNX Runtime's logits differ by {difference:.3g}, past the {tolerance * scale:.3g} tolerated for logits "
            f"up to {scale:.3g}; nothing was written."
        )
    return difference
