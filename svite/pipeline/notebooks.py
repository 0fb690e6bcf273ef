"""Notebooks as pipeline stages: `clean` makes canonical copies, `run` executes one with papermill.

    python -m svite.pipeline.notebooks clean
    python -m svite.pipeline.notebooks run 20_sparse --key svite-0.3-0 --section model recipe -p density=0.3

DVC compares bytes. So a copy in .nb/ holds nothing that merely saving a notebook changes, and an
executed notebook in reports/notebooks/ holds nothing in which two equal runs would differ: no
times, process ids, addresses or progress lines.
"""

import argparse
import ast
import ctypes
import json
import os
import re
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from svite.params.study import METHODS
from svite.pipeline import code

SOURCES, COPIES, CODE = Path("notebooks"), Path(".nb"), Path(".nb/code")
EXECUTED, SCRATCH = Path("reports/notebooks"), Path(".scratch/notebooks")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
PROGRESS = re.compile(r"^epoch .*\n?", re.MULTILINE)  # live on the terminal, never saved
PLAIN = {"ValueError", "FileNotFoundError", "OSError", "MemoryError"}  # their sentence is enough


class NotebookError(Exception):
    """One sentence for a person: what was wrong, where, what would be right."""


# ---- canonical copies ---------------------------------------------------------------------------


def canonical(notebook: dict) -> dict:
    """The notebook without what saving it changes: outputs, ids, counts, kernels, empty cells.

    >>> cell = {"cell_type": "code", "id": "x7", "source": ["a = 1"], "metadata": {}}
    >>> sorted(canonical({"cells": [cell], "metadata": {}})["cells"][0].items())[2:]
    [('id', '0'), ('metadata', {}), ('outputs', []), ('source', 'a = 1')]
    """
    return _document([c for c in map(_canonical_cell, notebook["cells"]) if c["source"].strip()])


def _canonical_cell(cell: dict) -> dict:
    kept = {"cell_type": cell["cell_type"], "source": "".join(cell["source"])}
    kept["metadata"] = _tags(cell)
    if cell["cell_type"] == "code":
        kept |= {"execution_count": None, "outputs": []}
    if "attachments" in cell:
        kept["attachments"] = cell["attachments"]
    return kept


def _tags(cell: dict) -> dict:
    tags = cell["metadata"].get("tags")
    return {"tags": list(tags)} if tags else {}


def _document(cells: list[dict]) -> dict:
    cells = [cell | {"id": str(i)} for i, cell in enumerate(cells)]
    return {"cells": cells, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}


def _text(notebook: dict) -> str:
    """The notebook in one fixed form."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write(text: str, path: Path) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


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
    """Make .nb/ hold `copies`, and no more."""
    made = copies()
    for stale in {path for path in COPIES.rglob("*") if path.is_file()} - made.keys():
        stale.unlink()
    for path, text in made.items():
        write(text, path)


def copies() -> dict[Path, str]:
    """The canonical copy of every numbered notebook, and what each of them and every method runs of svite."""
    notebooks = {source: canonical(read_notebook(source)) for source in sorted(SOURCES.glob("*.ipynb"))}
    running = {source.stem: code.reached(_code_of(notebook, source)) for source, notebook in notebooks.items()}
    try:
        running |= {f"methods/{method}": code.behind_method(method) for method in METHODS}
        listed = {CODE / f"{name}.txt": code.checksums(modules) for name, modules in running.items()}
    except SyntaxError as error:
        raise NotebookError(f"{error.filename}, line {error.lineno}, is no Python ({error.msg}).") from None
    return {COPIES / source.name: _text(notebook) for source, notebook in notebooks.items()} | listed


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


# ---- parameters ---------------------------------------------------------------------------------


def read_yaml(text: str | Path) -> Any:
    """YAML 1.2, as DVC reads it: 1e-3 is a number (PyYAML makes it a string), `yes` is a word.

    >>> read_yaml("[1e-3, true, yes, 007, null]")
    [0.001, True, 'yes', 7, None]
    """
    from svite.params.yaml import yaml_value

    where, read = (str(text), text.read_bytes()) if isinstance(text, Path) else (repr(text[:60]), text)
    try:
        return yaml_value(read, where, pure=True)
    except ValueError as error:
        raise NotebookError(str(error)) from None


def parameter(argument: str) -> tuple[str, Any]:
    """`density=0.3` from the command line -> ("density", 0.3)."""
    name, equals, value = argument.partition("=")
    if not equals:
        raise NotebookError(f"-p {argument} should read -p name=value.")
    return name, read_yaml(value)


def section(path: str) -> tuple[str, Any]:
    """A section of params.yaml under its last name: `pair.model` -> ("model", {...})."""
    value = read_yaml(Path("params.yaml"))
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise NotebookError(f"params.yaml has no section '{path}'.")
        value = value[name]
    return name, value


def declared(notebook: dict) -> list[str]:
    """The names that the notebook's parameters cell assigns, in order."""
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            nodes = ast.parse(cell["source"]).body
            return [n.id for s in nodes for n in ast.walk(s) if _is_target(n)]
    return []


def _is_target(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def check(name: str, notebook: dict, given: dict) -> None:
    """Refuse a parameter that the notebook doesn't have; papermill would only warn."""
    known = declared(notebook)
    for unknown in sorted(set(given) - set(known)):
        raise NotebookError(f"{name} has no parameter '{unknown}'; its parameters cell has: {', '.join(known)}.")


# ---- execution ----------------------------------------------------------------------------------


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, however that happened: no orphans."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def environment() -> dict[str, str]:
    """Settings that the kernel inherits; what the user has already set wins for threads only."""
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # one run, one thread: runs go side by side
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": "0",
        "MATPLOTLIBRC": str(Path(__file__).with_name("matplotlibrc")),  # never the user's own
        "IPYTHONDIR": str(SCRATCH.absolute() / "ipython"),  # no start-up files of the user's
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def execute(notebook: dict, name: str, parameters: dict, output: Path) -> dict:
    """Run the notebook in a kernel, its stdout live on ours; `output` shows how far it came."""
    sys.modules.setdefault("rfc3987_syntax", None)  # optional; builds a grammar for 1.7 s
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ |= environment()
    with tempfile.TemporaryDirectory(prefix="svite-") as sockets:
        settings = {
            "kernel_name": KERNEL["name"],
            "progress_bar": False,
            "stdout_file": sys.stdout,
            "stderr_file": sys.stderr,
            "record_timing": False,
            "coalesce_streams": True,
            "shutdown_kernel": "immediate",  # asked politely, it takes torch apart first
            "config": Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),  # TCP ports can be lost
            "extra_arguments": [f"--IPKernelApp.exec_lines={KERNEL_START}"],
        }
        try:
            return papermill.execute_notebook(nbformat.from_dict(notebook), str(output), parameters, **settings)
        except DeadKernelError:
            raise NotebookError(_obituary(name)) from None
        except PapermillExecutionError as error:
            raise NotebookError(_sentence(name, error, output)) from None


KERNEL_START = "__import__('svite.pipeline.notebooks').notebooks.die_with_parent()"


def _sentence(name: str, error: Any, output: Path) -> str:
    """The notebook's own words last; a traceback only where the words alone would not do."""
    if error.ename not in PLAIN:
        print(*error.traceback, sep="\n", file=sys.stderr)
    print(f"{name} stopped; as far as it came it lies in {output}.", file=sys.stderr)
    return error.evalue if error.ename in PLAIN else f"{error.ename}: {error.evalue}"


def _obituary(name: str) -> str:
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return (
        f"The kernel of {name} was killed, most likely for lack of memory (its peak was {peak:.1f} "
        "GiB; `dmesg` tells): run fewer at a time (J=1) or choose a smaller batch or model."
    )


def settled(notebook: dict) -> dict:
    """An executed notebook without the clock, process ids, addresses and progress lines."""
    cells = []
    for cell in json.loads(json.dumps(notebook["cells"])):
        cell["metadata"] = _tags(cell)
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in map(_settled_output, cell["outputs"]) if o]
        cells.append(cell)
    return _document(cells)


def _settled_output(output: dict) -> dict | None:
    """The output with its text made stable, or None where only progress lines were in it."""
    if output["output_type"] == "stream":
        text = PROGRESS.sub("", output["text"]) if output["name"] == "stdout" else output["text"]
        return output | {"text": _stable(text)} if text else None
    for kind, data in output.get("data", {}).items():
        if kind.startswith("text/"):
            output["data"][kind] = _stable(data)
    return output


def _stable(text: str) -> str:
    text = re.sub(r"ipykernel_\d+(/\d+)?", "ipykernel", text)
    return re.sub(r"\bat 0x[0-9a-f]+", "at 0x0", text)


def run(name: str, key: str | None, sections: list[str], parameters: list[str]) -> Path:
    """Execute .nb/NAME.ipynb for the pipeline; the result appears only when all of it ran."""
    copy, stem = COPIES / f"{name}.ipynb", key or name
    if Path(stem).name != stem:
        raise NotebookError(f"--key {stem} should be the name of a file.")
    if not copy.exists():
        clean()
    if not copy.exists():
        raise NotebookError(f"There is no notebook notebooks/{name}.ipynb.")
    notebook = read_notebook(copy)
    given = {"folder": "."} | dict(map(section, sections)) | dict(map(parameter, parameters))
    check(name, notebook, given)
    attempt, result = SCRATCH / f"{stem}.ipynb", EXECUTED / f"{stem}.ipynb"
    executed = execute(notebook, name, given, attempt)
    outputs = [o for cell in executed["cells"] for o in cell.get("outputs", [])]
    if any(o["output_type"] == "error" for o in outputs):  # SystemExit(0) passes for success
        raise NotebookError(f"{name} left by sys.exit before its end: later cells never ran.")
    write(_text(settled(executed)), result)
    attempt.unlink()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m svite.pipeline.notebooks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("clean", help="make the canonical copies in .nb/")
    runs = commands.add_parser("run", help="execute one notebook")
    runs.add_argument("name")
    runs.add_argument("--key", help="name of the run and of its executed notebook")
    runs.add_argument("--section", nargs="+", default=[], help="sections of params.yaml to pass")
    runs.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    try:
        if arguments.command == "clean":
            clean()
        else:
            run(arguments.name, arguments.key, arguments.section, arguments.parameters)
    except (NotebookError, OSError) as error:  # OSError: a full disk, no permission
        sys.exit(f"svite: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
