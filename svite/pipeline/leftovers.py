"""Results of stages that a study no longer has: they go, with their entries in `dvc.lock`, so that what DVC shows of a
study is what its `params.yaml` states."""

import re
from pathlib import Path

from svite.io.files import write
from svite.pipeline.locks import RECORD
from svite.pipeline.notebooks import read_yaml


def remove(stages: set[str], made: set[str]) -> list[str]:
    """Remove the files of recorded stages that are not among `stages`, but for those called as what is `made` still.

    Only what `dvc.lock` has recorded is touched: what somebody trained into the same folders by himself stays. Gives
    the names of the stages.
    """
    recorded = ((RECORD.exists() and read_yaml(RECORD)) or {}).get("stages") or {}
    dropped = {name: entry for name, entry in recorded.items() if name not in stages}
    for entry in dropped.values():
        for path in (Path(out["path"]) for out in entry.get("outs", [])):
            if path.is_file() and path.stem not in made:
                path.unlink()
    if dropped:
        entries = re.split(r"^(?=  \S.*:$)", RECORD.read_text(encoding="utf-8"), flags=re.MULTILINE)
        write(RECORD, "".join(text for text in entries if _name(text) not in dropped))
    return sorted(dropped)


def _name(entry: str) -> str:
    return entry.partition(":\n")[0].strip().strip("'\"")
