"""A safetensors file with a JSON document in its metadata and a checksum over both."""

import json
import reprlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from svite.io.files import write

FORMAT = 1
LONGEST = 500  # letters of a reason
_KEY, _CHECKSUM = "svite", "crc32"  # one key: safetensors writes several in any order, and bytes are to be the same


def write_container(path: str | Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both whole or not at all; the tensors are contiguous, on the CPU, and share no memory.

    Raises OSError with the file's name and the reason.
    """
    document = {"format": FORMAT, **document}
    signed = {**document, _CHECKSUM: _checksum(document, tensors)}
    write(path, save(dict(tensors), {_KEY: json.dumps(signed, allow_nan=False)}))


def read_container(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and the tensors.

    Raises FileNotFoundError; ValueError for a damaged file, one of a later format, and one that was not written here.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no saved model at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # of the format's library, of torch for a dtype that it does not know, of the system
        raise ValueError(f"{path} is damaged, or no safetensors file ({reason(error)}).") from None
    if _KEY not in metadata:
        raise ValueError(f"{path} holds tensors that svite.save did not write: it does not say of what model they are.")
    document = _parsed(metadata[_KEY])
    if document["format"] > FORMAT:
        found = reprlib.repr(document["format"])
        raise ValueError(f"{path} has format {found}; this svite reads up to {FORMAT}, so update svite.")
    if document.pop(_CHECKSUM, None) != _checksum(document, tensors):
        raise ValueError(f"{path} is damaged: its checksum does not fit what it holds; save or copy the model again.")
    return document, tensors


def _parsed(text: str) -> dict[str, Any]:
    """The document, or one that no checksum fits where it can't be read."""
    try:
        document = json.loads(text)
        json.dumps(document, allow_nan=False)
    except (ValueError, RecursionError):
        document = None
    readable = isinstance(document, dict) and type(document.get("format")) is int and document["format"] >= 1
    return document if readable else {"format": 0}


def reason(error: Exception) -> str:
    """What an error says, in one line that any terminal can show."""
    said = str(error) if type(error) is ValueError else repr(error)
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(said.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _checksum(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    checksum = zlib.crc32(json.dumps(document, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"
