"""`python -m benchmarks [--rounds N] [--output FILE]`: measure every claim, print a table, write reports/bench.json."""

import argparse
import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks import card, deployed, inference, latency, memory, narrowed, peers, step, update
from benchmarks.claim import table
from svite import study

TINY, SMALL = "deit_tiny_patch16_224", "deit_small_patch16_224"
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
    parser.add_argument("--output", type=Path, default=Path("reports/bench.json"), help="where the numbers go")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained models of the study, if there are")
    parser.add_argument("--latency", type=Path, default=Path("reports/latency.json"), help="where their times go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = partial(timm.create_model, SMALL)
    claims = [
        *memory.measure(TINY, runs=min(arguments.rounds, 3)),
        *step.measure("DeiT-Tiny", partial(timm.create_model, TINY), arguments.rounds),
        *update.measure("DeiT-Small", small, arguments.rounds),
        *inference.measure("DeiT-Small", small, arguments.rounds, AT),
        *narrowed.measure("DeiT-Small", small, min(arguments.rounds, 10), AT),
        *peers.measure("DeiT-Small", small, arguments.rounds),
        *deployed.measure("DeiT-Small", small, arguments.rounds, AT),
    ]
    ran = {"machine": machine(), "rounds": arguments.rounds}
    found = {"claims": [claim.entry() for claim in claims], "card": card.measure(SMALL, small, arguments.rounds, AT)}
    write(arguments.output, ran | found)
    print(table(claims))
    if times := latency.measure(study.load().grid, arguments.models, arguments.rounds):
        write(arguments.latency, ran | {"models": times})


def write(path: Path, result: dict[str, Any]) -> None:
    """A result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
