"""What the pipeline runs: `runs.yaml` tells DVC of each run of the study, `.nb/runs/` has each run's parameters.

DVC reads `runs.yaml` before it runs anything, so the file lies in git, and is written anew by `svite plan` and
`svite repro`; a stage of a plan that is not of this `params.yaml` refuses to run.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from svite.io.files import write
from svite.params.paths import repository
from svite.params.run import DENSE
from svite.params.study import Planned, Study, load

PLAN, RUNS = Path("runs.yaml"), Path(".nb/runs")
HEAD = "# Written by `svite plan` from params.yaml, for dvc.yaml: each run by its key. `make repro` does it too.\n"
MEASURED = (Path("reports/bench.json"), Path("reports/latency.json"))  # `make bench` fills them; figures read them


def notebook(planned: Planned) -> str:
    """The notebook that trains a run."""
    if planned.run.method == DENSE:
        return "10_dense"
    if planned.start:
        return "30_prune"
    return "25_structure" if planned.group == "structures" else "20_sparse"


def parameters(planned: Planned) -> dict[str, Any]:
    """What the notebooks are told of a run; of what it has none of (options, a name, a start) nothing."""
    run = planned.run
    optional = {
        "options": run.options,
        "name": run.name,
        "start": planned.start and f"models/{planned.start}.safetensors",
    }
    told = {"method": run.method, "density": run.density, "seed": run.seed, "model": run.model.model_dump()}
    told |= {"recipe": run.recipe.model_dump(mode="json", exclude_defaults=True)}
    return told | {name: value for name, value in optional.items() if value}


def parameter_files(study: Study) -> dict[Path, str]:
    """The parameters of every run, as files on which its stages depend."""
    return {
        RUNS / f"{planned.key}.json": json.dumps(parameters(planned), indent=1, sort_keys=True) + "\n"
        for planned in study.runs
    }


def stages(study: Study) -> dict[str, dict[str, Any]]:
    """What `dvc.yaml` asks for: the items of its stages `dense`, `train` and `evaluate`, by the key of the run."""
    dense = [planned for planned in study.runs if planned.run.method == DENSE]
    sparse = [planned for planned in study.runs if planned.run.method != DENSE]
    tested = study.among("weights", "structures", "attention")
    return {
        "dense": {planned.key: {"notebook": notebook(planned)} for planned in dense},
        "sparse": {planned.key: {"notebook": notebook(planned)} | _needs(planned) for planned in sparse},
        "tested": {planned.key: {"attention": planned.group == "attention"} for planned in tested},
    }


def _needs(planned: Planned) -> dict[str, str]:
    """The method, and the two files of the run that it starts from: its own parameters where it starts from none, for
    DVC can't leave a dependency out."""
    own = str(RUNS / f"{planned.key}.json")
    start, before = f"models/{planned.start}.safetensors", f"metrics/train/{planned.start}.json"
    files = {"start": start, "before": before} if planned.start else {"start": own, "before": own}
    return {"method": planned.run.method} | files


def text(study: Study) -> str:
    """The plan as YAML: JSON is YAML too, a line a run."""
    lines = [f"root: {repository()}"]
    for stage, items in stages(study).items():
        lines += [f"{stage}:" if items else f"{stage}: {{}}"]
        lines += [f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in items.items()]
    return HEAD + "\n".join(lines) + "\n"


def write_plan() -> bool:
    """Write `runs.yaml` for this `params.yaml`, and what a study in a folder of its own lacks; whether runs changed.

    Raises ValueError for a study that makes no sense.
    """
    planned, root = text(load()), repository()
    changed = not PLAN.is_file() or PLAN.read_text(encoding="utf-8") != planned
    if changed:
        write(PLAN, planned)
    if root != Path("."):
        _furnish(root)
    return changed


def _furnish(root: Path) -> None:
    """What every study has: the repository's pipeline, a page for its own prose, and room for measurements."""
    from svite.report.build import skeleton

    if not Path("dvc.yaml").exists() or Path("dvc.yaml").read_bytes() != (root / "dvc.yaml").read_bytes():
        shutil.copy(root / "dvc.yaml", "dvc.yaml")
    skeleton(Path("."))
    for path in MEASURED:
        if not path.exists():
            write(path, "{}\n")


def refuse_stale(study: Study) -> None:
    """ValueError where `runs.yaml` is not of this study: DVC would run what nobody asks for any more."""
    if not PLAN.is_file() or PLAN.read_text(encoding="utf-8") != text(study):
        raise ValueError(
            f"{PLAN} is not of this params.yaml; `svite plan` writes it anew, and `make repro` does so first."
        )
