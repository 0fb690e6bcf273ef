"""What several processes do together: agree, and tell where they do not. One process agrees with itself."""

import zlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor

from svite.data.source import Batch, Share
from svite.params.device import takes_gpu
from svite.sparsity.sparsifier import Sparsifier

PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def accelerator_of_this_machine() -> Accelerator:
    """Accelerate's view of the processes that a launcher started, on the device that `device.takes_gpu` says.

    Raises ValueError where its own configuration asks for another way to spread a model, or the device is not there.
    """
    # Precision and compilation are the recipe's: a result must not depend on who launched it.
    accelerator = Accelerator(cpu=not takes_gpu(), mixed_precision="no", dynamo_backend="no")
    if accelerator.distributed_type not in PLAIN:
        raise ValueError(
            f"Accelerate's configuration asks for {accelerator.distributed_type.value}; set it to none there, and pass "
            "--shard to spread a model over processes."
        )
    return accelerator


def share_of(accelerator: Accelerator) -> Share:
    """This process's part."""
    return Share(accelerator.process_index, accelerator.num_processes)


def together(accelerator: Accelerator, *values: Tensor | float) -> list[float]:
    """The mean of each value over all processes, in one exchange."""
    own = torch.stack([torch.as_tensor(value, dtype=torch.float64).detach().cpu() for value in values])
    if accelerator.num_processes == 1:
        return own.tolist()
    return accelerator.reduce(own.to(accelerator.device), "mean").tolist()


def everywhere(accelerator: Accelerator, value: str | None) -> list[str | None]:
    """What each process says, in their order."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]


def refuse_disagreement(accelerator: Accelerator, sparsifier: Sparsifier, step: int) -> None:
    """Compare a checksum of the masks across processes.

    Raises RuntimeError where they differ: from then on each process would train a model of its own.
    """
    if accelerator.num_processes == 1:
        return
    masks = zlib.crc32(b"".join(bits.numpy().tobytes() for bits in sparsifier.state_dict()["alive"].values()))
    found = accelerator.gather(torch.tensor([masks], device=accelerator.device)).tolist()
    if len(set(found)) > 1:
        odd = [rank for rank, each in enumerate(found) if each != found[0]]
        raise RuntimeError(
            f"At step {step} the masks of process {', '.join(map(str, odd))} differ from those of process 0; "
            "gradients or weights are not the same everywhere. The last checkpoint stands."
        )


def padded(accelerator: Accelerator, batches: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Batches, and whether each counts: who has none left repeats its last, for a sharded model's forward pass needs
    every process."""
    last: Batch | None = None
    while True:
        batch = next(batches, None)
        if together(accelerator, batch is not None)[0] == 0:
            return
        if batch is None and last is None:
            raise ValueError("There are fewer validation images than processes; use fewer processes.")
        last = batch or last
        yield last, batch is not None
