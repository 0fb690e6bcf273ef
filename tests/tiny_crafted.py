"""Crafted files, and a process that loads them."""

import json
import subprocess
import sys
from pathlib import Path

HUGE = 10**9


def nested(depth: int) -> list:
    """A list in a list in a list."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


CHILD = """
import json, resource, sys
import torch
from svite.io.saved import load
from svite.io.container import read_container
from svite.io.pack import unpacked
from svite.io.tensors import all_tensors
torch.load = None
paths, found = sys.argv[1:], []
load(paths[0])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (2**36, resource.getrlimit(resource.RLIMIT_AS)[1]))
for path in paths:
    try:
        model, sparsifier = load(path)
    except ValueError as error:
        found.append(str(error))
        continue
    document, small = read_container(path)
    tensors, masks = unpacked(small, document["packed"])
    held, ties = all_tensors(model), document["spec"]["ties"]
    assert held.keys() == tensors.keys() | ties.keys(), path
    assert all(torch.equal(held[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in tensors.items()), path
    assert all(held[name] is held[other] for name, other in ties.items()), path
    assert all(torch.equal(sparsifier.masks[name], mask) for name, mask in masks.items()), path
    assert not any(tensor.is_meta for tensor in held.values()), path
    found.append("")
print(json.dumps({"said": found, "grown": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak}))
"""


def loaded_elsewhere(*paths: Path) -> tuple[list[str], int]:
    """What another process says of each ("" for one that it loads as it is described), and the kilobytes it takes."""
    command = [sys.executable, "-c", CHILD, *map(str, paths)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=600)  # for one that never returns
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["said"], found["grown"]
