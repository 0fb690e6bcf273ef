"""JupyterLab, as `make lab` starts it, asks for its token and listens on this machine only."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def listening(port: int) -> set[str]:
    """The addresses, in hexadecimal as Linux tells them, that listen at a port."""
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}


def answered(url: str) -> int:
    try:
        return urllib.request.urlopen(url, timeout=10).status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.fixture
def server(tmp_path) -> dict:
    """What JupyterLab says of itself, started as `make lab` does, with a user's settings that are all new."""
    command = re.search(r"^lab:.*\n\t(jupyter lab .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    kinds = ("CONFIG", "RUNTIME", "DATA")
    homes = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in kinds} | {"HOME": str(tmp_path)}
    root = ["--allow-root"] * (os.geteuid() == 0)
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [Path(sys.executable).with_name(command[0]), *command[1:], "--no-browser", "--port", "0", *root],
            cwd=ROOT,
            env=os.environ | homes | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=said,
            stderr=said,
        )
    try:
        for _ in range(600):
            told = list((tmp_path / "RUNTIME").glob("jpserver-*.json"))
            if told and told[0].read_text():
                break
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.1)
        yield json.loads(told[0].read_text())
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux tells who listens where")
def test_jupyterlab_asks_for_its_token_and_listens_on_this_machine_only(server):
    contents = f"http://127.0.0.1:{server['port']}/api/contents"
    assert len(server["token"]) >= 32
    assert answered(contents) == 403
    assert answered(f"{contents}?token={'0' * 48}") == 403
    assert answered(f"{contents}?token={server['token']}") == 200
    assert listening(server["port"]) <= {"0100007F", "0" * 24 + "01000000"}
    assert listening(server["port"])
