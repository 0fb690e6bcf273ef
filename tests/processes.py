"""One of several processes of tests/test_train_processes.py, started by torchrun: `processes.py DATA FOLDER`."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_runs import a_run, loop_of

from svite.data.memory import Data
from svite.train.checkpoint import load_checkpoint, save_checkpoint
from svite.train.loop import Loop

METHODS = ("dense", "svite", "gmp", "set")
PLAIN = {"rotate": 0.0, "zoom": 0.0, "shift": 0.0, "epochs": 2}  # nothing drawn, so that processes draw alike
HALFWAY = 4


def trained(loop: Loop) -> dict:
    """What a run of the loop came to, with its masks after every update."""
    masks, advance = [], loop.advance

    def watched() -> None:
        updates = len(loop.sparsifier.updates)
        advance()
        if len(loop.sparsifier.updates) > updates:
            masks.append(loop.sparsifier.state_dict()["alive"])

    if loop.sparsifier:
        loop.advance = watched
    done = loop.fit()
    density = done.sparsifier.density if done.sparsifier else 1.0
    return {"masks": masks, "weights": dict(done.model.state_dict()), "rows": loop.rows, "density": density}


def halfway(data: Data, folder: Path, shard: bool) -> None:
    """Leave a checkpoint of the middle of a run."""
    loop = loop_of(a_run("svite", **PLAIN, ema=0.5), data, shard=shard)
    loop.model.train()
    for _ in range(HALFWAY):
        loop.advance()
    state = loop.state_dict()
    held = [value is not None for value in (*state["model"].values(), *state["average"].values())]
    assert all(held) if loop.share.rank == 0 or not shard else not any(held), "one process holds the whole"
    if loop.share.rank == 0:
        save_checkpoint(folder / f"half{'-sharded' * shard}.ckpt", {"settings": {}, "loop": state})
    loop.accelerator.wait_for_everyone()


def resumed(data: Data, path: Path, shard: bool) -> dict:
    """The second half, from a checkpoint of however many processes."""
    loop = loop_of(a_run("svite", **PLAIN, ema=0.5), data, shard=shard)
    loop.load_state_dict(load_checkpoint(path)["loop"])
    return trained(loop)


def complaint(make: Callable[[], Loop], change: Callable[[Loop], None]) -> str:
    """What is said where process 1 is changed after the third step."""
    loop = make()
    loop.model.train()
    try:
        for step in range(8):
            if step == 3 and loop.share.rank == 1:
                change(loop)
            loop.advance()
    except RuntimeError as error:
        return str(error)
    return ""


def another_topology(loop: Loop) -> None:
    """Let this process draw another choice than the rest."""
    loop.sparsifier.scoring.seed += 1


def no_number(loop: Loop) -> None:
    """Let this process's images be no numbers."""
    loop.batches = ((images * torch.nan, labels) for images, labels in loop.batches)


def main(images: str, folder: str) -> None:
    data, place = Data(images, channels=1, size=12), Path(folder)
    found = {}
    for shard in (False, True):
        for method in METHODS:
            found[f"{method}{' sharded' * shard}"] = trained(loop_of(a_run(method, **PLAIN), data, shard=shard))
        if not (place / f"half{'-sharded' * shard}.ckpt").exists():
            halfway(data, place, shard)
        for saved in sorted(place.glob("half*.ckpt")):
            found[f"resumed {saved.stem}{' sharded' * shard}"] = resumed(data, saved, shard)
    found["disagreement"] = complaint(lambda: loop_of(a_run("set", **PLAIN), data), another_topology)
    found["no number"] = complaint(lambda: loop_of(a_run("dense", **PLAIN), data), no_number)
    loop = loop_of(a_run("dense"), data)
    loop.accelerator.end_training()
    torch.save(found, place / f"{loop.share.of}-{loop.share.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
