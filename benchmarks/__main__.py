"""`python -m benchmarks [--rounds N] [--output FILE]`: measure every claim, print a table, write reports/bench.json."""

import argparse
import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks import (
    card,
    deployed,
    inference,
    latency,
    loading,
    loops,
    memory,
    narrowed,
    outputs,
    peers,
    scale,
    scaling,
    step,
    update,
)
from benchmarks.claim import table
from svite.params import study

TINY, SMALL, BASE = "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"
PARTS = ("memory", "step", "update", "loading", "inference", "narrowed", "peers", "layers", "models", "runtimes")
PARTS += ("loops", "scaling", "scale", "outputs", "card", "latency")
AT = (3, 6, 9)  # blocks before which tokens are removed, as in DynamicViT and EViT: their layers 4, 7 and 10


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def main() -> None:
    """Run all, one thread."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What a sparsifier costs, as ratios.")
    parser.add_argument("--rounds", type=int, default=40, help="turns that each contestant of a timing takes")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these again, keep what else there is")
    parser.add_argument("--output", type=Path, default=Path("reports/bench.json"), help="where the numbers go")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained models of the study, if there are")
    parser.add_argument("--latency", type=Path, default=Path("reports/latency.json"), help="where their times go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = partial(timm.create_model, SMALL)
    ran = {"machine": machine(), "rounds": arguments.rounds}
    parts = {
        "memory": partial(memory.measure, TINY, runs=min(arguments.rounds, 3)),
        "step": partial(step.measure, "DeiT-Tiny", partial(timm.create_model, TINY), arguments.rounds),
        "update": partial(update.measure, "DeiT-Small", small, arguments.rounds),
        "loading": partial(loading.measure, "DeiT-Tiny", partial(timm.create_model, TINY), arguments.rounds),
        "inference": partial(inference.measure, "DeiT-Small", small, arguments.rounds, AT),
        "narrowed": partial(narrowed.measure, "DeiT-Small", small, min(arguments.rounds, 10), AT),
        "peers": partial(peers.measure, "DeiT-Small", small, arguments.rounds),
        "layers": partial(deployed.layers, arguments.rounds),
        "models": partial(deployed.models, "DeiT-Small", small, arguments.rounds, AT),
        "loops": partial(loops.measure, "DeiT-Tiny", TINY, arguments.rounds),
        "scaling": partial(scaling.measure, min(arguments.rounds, 5)),
        "runtimes": partial(deployed.peers, "DeiT-Small", small, arguments.rounds),
        "outputs": partial(outputs.measure, "DeiT-Tiny", partial(timm.create_model, TINY), arguments.rounds),
        "scale": partial(scale.measure, BASE, arguments.rounds),
    }
    for name in arguments.only or PARTS:
        if name == "card":
            write(arguments.output, read(arguments.output) | {"card": card.measure(SMALL, small, arguments.rounds, AT)})
        elif name == "latency":
            if times := latency.measure(study.load(), arguments.models, arguments.rounds):
                write(arguments.latency, ran | {"models": times})
        else:
            claims = list(parts[name]())
            print(table(claims), flush=True)
            replace(arguments.output, ran, name, [claim.entry() for claim in claims])


def replace(path: Path, ran: dict[str, Any], part: str, entries: list[dict[str, Any]]) -> None:
    """Put a part's claims in the place of its earlier ones, with the machine and the rounds of this run."""
    before = read(path)
    others = [claim for claim in before.get("claims", []) if claim.get("part") != part]
    new = [entry | {"part": part, "rounds": ran["rounds"]} for entry in entries]
    order = sorted(others + new, key=lambda claim: PARTS.index(claim["part"]))
    write(path, before | ran | {"claims": order})


def read(path: Path) -> dict[str, Any]:
    """What is there already; nothing where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, result: dict[str, Any]) -> None:
    """A result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
