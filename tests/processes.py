"""One of several processes of tests/test_train_processes.py, started by torchrun: `processes.py DATA FOLDER`."""

import sys
from pathlib import Path

import torch
from tiny_runs import a_run, loop_of

from svite.train.data import Data
from svite.train.loop import Loop

METHODS = ("dense", "svite", "gmp", "set")
SETTINGS = {"rotate": 0.0, "zoom": 0.0, "shift": 0.0, "epochs": 2}


def trained(loop: Loop) -> dict:
    """What a run of the loop came to, and its masks after every update."""
    masks, advance = [], loop.advance

    def watched() -> None:
        updates = len(loop.sparsifier.updates)
        advance()
        if len(loop.sparsifier.updates) > updates:
            masks.append(loop.sparsifier.state_dict()["alive"])

    if loop.sparsifier:
        loop.advance = watched
    done = loop.fit()
    return {
        "masks": masks,
        "weights": dict(done.model.state_dict()),
        "rows": loop.rows,
        "shown": len(loop.source.data.validation),
    }


def main(images: str, folder: str) -> None:
    data = Data(images, channels=1, size=12)
    found = {}
    for method in METHODS:
        for shard in (False, True):
            loop = loop_of(a_run(method, **SETTINGS), data, shard=shard)
            found[f"{method}{' sharded' * shard}"] = trained(loop)
    loop.accelerator.end_training()
    torch.save(found, Path(folder) / f"{loop.share.of}-{loop.share.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
