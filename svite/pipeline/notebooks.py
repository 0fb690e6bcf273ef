"""Notebooks as pipeline stages: `clean` makes canonical copies, `run` executes one with papermill.

    python -m svite.pipeline.notebooks clean
    python -m svite.pipeline.notebooks run 00_data -p data=data
    python -m svite.pipeline.notebooks run 20_sparse svite-0.3-0 -p data=data

DVC compares bytes. So an executed notebook in reports/notebooks/ holds nothing in which two equal
runs would differ: no times, process ids, addresses or progress lines.
"""

import argparse
import ast
import json
import os
import re
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from svite.io.files import write
from svite.pipeline.copies import COPIES, KERNEL, NotebookError, clean, document, read_notebook, tags_of, text_of
from svite.pipeline.orphans import die_with_parent
from svite.pipeline.plan import RUNS

EXECUTED, SCRATCH = Path("reports/notebooks"), Path(".scratch/notebooks")
PROGRESS = re.compile(r"^epoch .*\n?", re.MULTILINE)  # live on the terminal, never saved
PLAIN = {"ValueError", "FileNotFoundError", "OSError", "MemoryError"}  # their sentence is enough


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


def of_run(key: str | None) -> dict[str, Any]:
    """What `clean` wrote down of a run of the study; nothing where no run is named."""
    if key is None:
        return {}
    path = RUNS / f"{key}.json"
    if not path.is_file():
        raise NotebookError(f"params.yaml has no run {key}; those that it has are named in runs.yaml.")
    return json.loads(path.read_text(encoding="utf-8"))


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


KERNEL_START = "__import__('svite.pipeline.orphans').pipeline.orphans.die_with_parent()"


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
        cell["metadata"] = tags_of(cell)
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in map(_settled_output, cell["outputs"]) if o]
        cells.append(cell)
    return document(cells)


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


def run(name: str, key: str | None, parameters: list[str]) -> Path:
    """Execute .nb/NAME.ipynb, for a run of the study by its key; the result appears only when all of it ran."""
    copy, stem = COPIES / f"{name}.ipynb", f"{name}-{key}" if key else name
    if not copy.exists():
        clean()
    if not copy.exists():
        raise NotebookError(f"There is no notebook notebooks/{name}.ipynb.")
    notebook = read_notebook(copy)
    given = {"folder": "."} | of_run(key) | dict(map(parameter, parameters))
    check(name, notebook, given)
    attempt, result = SCRATCH / f"{stem}.ipynb", EXECUTED / f"{stem}.ipynb"
    executed = execute(notebook, name, given, attempt)
    outputs = [o for cell in executed["cells"] for o in cell.get("outputs", [])]
    if any(o["output_type"] == "error" for o in outputs):  # SystemExit(0) passes for success
        raise NotebookError(f"{name} left by sys.exit before its end: later cells never ran.")
    write(result, text_of(settled(executed)))
    attempt.unlink()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m svite.pipeline.notebooks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("clean", help="make the canonical copies in .nb/")
    runs = commands.add_parser("run", help="execute one notebook")
    runs.add_argument("name")
    runs.add_argument("key", nargs="?", help="of the run whose parameters it gets")
    runs.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    try:
        if arguments.command == "clean":
            clean()
        else:
            run(arguments.name, arguments.key, arguments.parameters)
    except (NotebookError, OSError) as error:  # OSError: a full disk, no permission
        sys.exit(f"svite: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
