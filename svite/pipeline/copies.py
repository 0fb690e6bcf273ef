"""Canonical copies of the notebooks, what each of them and every method runs of svite, and each run's parameters.

DVC compares bytes. So a copy in .nb/ holds nothing that merely saving a notebook changes, .nb/code/ holds checksums of
syntax, and .nb/runs/ what `params.yaml` comes to for each run.
"""

import ast
import json
from pathlib import Path

from svite.io.files import write
from svite.params.paths import repository
from svite.params.run import METHODS
from svite.params.study import load
from svite.pipeline import code, plan

SOURCES, COPIES, CODE = "notebooks", Path(".nb"), Path(".nb/code")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


class NotebookError(Exception):
    """One sentence for a person: what was wrong, where, what would be right."""


def canonical(notebook: dict) -> dict:
    """The notebook without what saving it changes: outputs, ids, counts, kernels, empty cells.

    >>> cell = {"cell_type": "code", "id": "x7", "source": ["a = 1"], "metadata": {}}
    >>> sorted(canonical({"cells": [cell], "metadata": {}})["cells"][0].items())[2:]
    [('id', '0'), ('metadata', {}), ('outputs', []), ('source', 'a = 1')]
    """
    return document([c for c in map(_canonical_cell, notebook["cells"]) if c["source"].strip()])


def _canonical_cell(cell: dict) -> dict:
    kept = {"cell_type": cell["cell_type"], "source": "".join(cell["source"])}
    kept["metadata"] = tags_of(cell)
    if cell["cell_type"] == "code":
        kept |= {"execution_count": None, "outputs": []}
    if "attachments" in cell:
        kept["attachments"] = cell["attachments"]
    return kept


def tags_of(cell: dict) -> dict:
    """What stays of a cell's metadata: its tags, by which papermill knows the parameters."""
    tags = cell["metadata"].get("tags")
    return {"tags": list(tags)} if tags else {}


def document(cells: list[dict]) -> dict:
    """A notebook of these cells, in the form in which two equal ones have the same bytes."""
    cells = [cell | {"id": str(i)} for i, cell in enumerate(cells)]
    return {"cells": cells, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}


def text_of(notebook: dict) -> str:
    """The notebook in one fixed form."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_notebook(path: Path) -> dict:
    """The notebook as it lies on disk; NotebookError for a file that is none."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if all("source" in cell and "metadata" in cell for cell in notebook["cells"]):
            return notebook
        reason = "a cell without source or metadata"
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    raise NotebookError(f"{path} is no notebook ({reason}); save it anew, or `git checkout` it.")


def clean() -> None:
    """Make .nb/ hold `copies` and the parameters of each run, and no more.

    Raises NotebookError for a file that is no notebook or no Python, and where params.yaml makes no sense or is not
    what `runs.yaml` was planned from.
    """
    try:
        study = load()
        plan.refuse_stale(study)
    except (ValueError, FileNotFoundError) as error:
        raise NotebookError(str(error)) from None
    made = copies() | plan.parameter_files(study)
    for stale in {path for path in COPIES.rglob("*") if path.is_file()} - made.keys():
        stale.unlink()
    for path, text in made.items():
        write(path, text)


def copies() -> dict[Path, str]:
    """The canonical copy of every numbered notebook, and what each of them and every method runs of svite."""
    sources = sorted((repository() / SOURCES).glob("*.ipynb"))
    notebooks = {source: canonical(read_notebook(source)) for source in sources}
    cells = {source.stem: _code_of(notebook, source) for source, notebook in notebooks.items()}
    try:
        running = {name: code.reached(each) for name, each in cells.items()}
        running |= {f"methods/{method}": code.behind_method(method) for method in METHODS}
        listed = {CODE / f"{name}.txt": code.checksums(modules) for name, modules in running.items()}
    except SyntaxError as error:
        raise NotebookError(f"{error.filename}, line {error.lineno}, is no Python ({error.msg}).") from None
    return {COPIES / source.name: text_of(notebook) for source, notebook in notebooks.items()} | listed


def _code_of(notebook: dict, path: Path) -> list[str]:
    """The cells of code, magic commands turned into Python."""
    from IPython.core.inputtransformer2 import TransformerManager

    python = TransformerManager().transform_cell
    cells = [python(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        try:
            ast.parse(cell)
        except SyntaxError as error:
            raise NotebookError(f"{path} has a cell that is no Python ({error.msg}: {error.text!r}).") from None
    return cells
