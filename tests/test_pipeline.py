"""`svite repro` on a toy project: in parallel, one at a time, killed, mended, refused."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy

from svite.params.study import Study
from svite.pipeline import chores, locks
from svite.pipeline import repro as pipeline

pytestmark = pytest.mark.xdist_group("pipeline")
ALL = ["run-0", "run-1", "run-2", "total", "upper"]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A toy project of which nothing has run."""
    place = tmp_path_factory.mktemp("toy") / "fresh"
    toy.make(place)
    return place


@pytest.fixture(scope="module")
def done(fresh, tmp_path_factory):
    """The same, run to its end with two jobs, and committed."""
    place = tmp_path_factory.mktemp("toy") / "done"
    shutil.copytree(fresh, place)
    code, out = toy.svite(place, "repro", "--jobs", "2")
    assert code == 0, out
    assert toy.ran(place) == ALL
    toy.commit(place)
    return place


@pytest.fixture
def project(fresh, tmp_path):
    return shutil.copytree(fresh, tmp_path / "project")


@pytest.fixture
def finished(done, tmp_path):
    return shutil.copytree(done, tmp_path / "finished")


def wait_for(process: subprocess.Popen, text: str) -> None:
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"'{text}' never appeared")


# ---- what runs ----------------------------------------------------------------------------------


def test_a_second_run_finds_nothing_to_do(finished):
    code, out = toy.svite(finished, "repro", "--jobs", "2")
    assert (code, toy.ran(finished)) == (0, [])
    assert out.startswith(chores.IDLE)
    assert out.splitlines()[-1] == "The report: reports/report.pdf, reports/report.html"


def test_progress_says_how_much_is_left(project):
    code, out = toy.svite(project, "repro")
    assert code == 0
    assert out.startswith("Up to 5 stages to run: about 17 s left.")
    assert "run@0                    epoch 2/3 of run-0" in out
    assert [f"[{n}/5]" in out for n in range(1, 6)] == [True] * 5


def test_one_short_stage_says_little_about_the_pace(monkeypatch):
    monkeypatch.chdir(toy.ROOT)
    progress = pipeline.Remaining(jobs=2)
    progress.plan({"notebooks", *(f"train@{number}" for number in range(100))})
    progress.done("notebooks", spent=10)  # of one second
    assert str(progress) == "about 43 min left"
    for number in range(80):
        progress.done(f"train@{number}", spent=90)  # of 45
    assert str(progress) == "about 15 min left"


def test_runs_of_a_matrix_run_side_by_side(project):
    with toy.start(project, "repro", "--jobs", "3", NAP="4") as process:
        deadline, most = time.monotonic() + 60, 0
        while process.poll() is None and time.monotonic() < deadline and most < 3:
            running = [c for c in toy.left_over(project) if "work.py run" in c]
            most = max(most, len({c.split()[-1] for c in running}))
            time.sleep(0.2)
        process.terminate()
        process.communicate(timeout=30)
    assert most == 3


def test_a_new_value_costs_its_own_run(finished):
    params = finished / "params.yaml"
    params.write_text(params.read_text().replace("seeds: [0, 1, 2]", "seeds: [0, 1, 2, 7]"))
    assert toy.svite(finished, "repro", "--jobs", "2")[0] == 0
    assert toy.ran(finished) == ["run-7", "total"]


def test_a_dropped_value_leaves_no_results(finished):
    (finished / "metrics/mine.json").write_text('{"top1": 1}')
    params = finished / "params.yaml"
    params.write_text(params.read_text().replace("seeds: [0, 1, 2]", "seeds: [0, 1]"))
    code, out = toy.svite(finished, "repro", "--jobs", "2")
    assert code == 0, out
    assert "Removed, for the study has them no more: the results of run@2.\n" in out
    assert toy.ran(finished) == ["total"]
    assert {path.name for path in (finished / "metrics").iterdir()} == {"run-0.json", "run-1.json", "mine.json"}
    assert not (finished / "out/run-2").exists()
    assert "run@2" not in (finished / "dvc.lock").read_text()
    assert pipeline.read_yaml(finished / "dvc.lock")["stages"].keys() == {"upper", "run@0", "run@1", "total"}


def test_missing_data_come_from_the_bundled_store(project):
    shutil.rmtree(project / "data")
    shutil.rmtree(project / ".dvc/cache")
    assert toy.svite(project, "repro", "--jobs", "2")[0] == 0
    assert (project / "data/x").read_text() == "seven"


# ---- what is refused ----------------------------------------------------------------------------


def refusal(place: Path, **settings: str) -> str:
    """The one sentence with which `svite repro` ends."""
    code, out = toy.svite(place, "repro", **settings)
    assert code == 1
    return out.splitlines()[-1]


def test_two_pipelines_at_once_are_refused(project):
    with toy.start(project, "repro", NAP="600") as first:
        wait_for(first, "epoch 1/3 of run")
        pid = (project / locks.PIPELINE).read_text()
        sentence = f"A pipeline already runs here (process {pid}): wait for it to end, or stop it."
        assert refusal(project) == f"svite: {sentence}"
        first.terminate()
        first.communicate(timeout=30)


def test_a_plain_dvc_repro_is_noticed(project):
    command = [sys.executable, "-m", "dvc", "repro"]
    options = {"cwd": project, "env": toy.environment(NAP="600"), "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as plain:
        wait_for(plain, "epoch 1/3 of run")
        assert refusal(project).startswith("svite: `dvc` already runs here (process ")
        plain.terminate()


def test_changed_data_are_refused(finished):
    (finished / "data/x").write_text("eight")
    assert refusal(finished).startswith("svite: The data differ from what data.dvc records:")
    assert toy.ran(finished) == []


def test_a_wrong_study_is_refused_before_anything_runs(project):
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("densities: [0.6", "densities: [6"))
    assert "params.yaml: densities" in refusal(project)
    assert toy.ran(project) == []


@pytest.mark.parametrize("jobs", ["0", "two", "-1"])
def test_jobs_is_a_count(project, jobs):
    code, out = toy.svite(project, "repro", f"--jobs={jobs}")
    assert code == 2
    assert f"'{jobs}' should be a whole number from 1 on" in out


# ---- what ends early ----------------------------------------------------------------------------


def test_a_failure_ends_the_others_and_says_why(project):
    sentence = refusal(project, FAIL="run-0", NAP="0.2")
    assert sentence == "svite: run@0: this run was asked to fail."
    assert toy.gone(project)
    assert toy.svite(project, "repro", "--jobs", "2")[0] == 0


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_however_it_is_ended_nothing_stays_and_the_next_run_goes_on(project, sign):
    with toy.start(project, "repro", "--jobs", "2", NAP="600") as process:
        wait_for(process, "epoch 1/3 of run")
        process.send_signal(sign)
        out, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert toy.gone(project)
    if sign != signal.SIGKILL:
        assert out.splitlines()[-1] == "Stopped; the same command goes on from here."
    toy.ran(project)
    assert toy.svite(project, "repro", "--jobs", "2")[0] == 0
    assert toy.ran(project) == [name for name in ALL if name != "upper"]
    assert toy.dvc(project, "status") == "Data and pipelines are up to date.\n"


@pytest.mark.parametrize("pid", [2**22 - 1, 1])
def test_a_lock_that_the_dead_left_is_forgotten(project, pid):
    """Also where another process has the number now; and where half of the file was written."""
    holder = {"pid": pid, "cmd": "dvc repro"}
    text = json.dumps({"write": {str(project / "out/run-0"): holder}, "read": {}})
    for left in (text, text[: len(text) // 2]):
        path = project / locks.DVC_HOLDERS
        path.parent.mkdir(exist_ok=True)
        path.write_text(left)
        assert toy.svite(project, "repro", "--jobs", "2")[0] == 0


def test_half_a_lock_file_is_mended_and_nothing_runs_again(finished):
    lock = finished / "dvc.lock"
    whole = lock.read_text()
    for rest in (whole[: len(whole) * 2 // 3], ""):
        lock.write_text(rest)
        assert toy.svite(finished, "repro", "--jobs", "2")[0] == 0
        assert toy.ran(finished) == []
        assert lock.read_text() == whole


def test_without_a_copy_only_the_broken_entry_runs_again(finished):
    (finished / locks.COPY).unlink()
    lock = finished / "dvc.lock"
    whole = lock.read_text()
    names = re.findall(r"^  (\S+):$", whole, re.MULTILINE)
    lock.write_text(whole[: whole.index(f"  {names[2]}:") + 60])
    assert toy.svite(finished, "repro", "--jobs", "2")[0] == 0
    lost = [name.replace("@", "-") for name in names[2:] if name.startswith("run@")]
    assert toy.ran(finished) == sorted(lost)  # DVC's run cache has the others
    assert pipeline.read_yaml(lock) == pipeline.read_yaml(whole)


# ---- what belongs to whom -----------------------------------------------------------------------


def stored(place: Path) -> set[Path]:
    return set((place / "data-store").rglob("*"))


def test_a_push_never_fills_the_bundled_store(finished, tmp_path):
    before = stored(finished)
    with pytest.raises(AssertionError, match="no remote specified"):
        toy.dvc(finished, "push")
    assert stored(finished) == before
    toy.dvc(finished, "remote", "add", "--default", "mine", str(tmp_path / "mine"))
    assert "pushed" in toy.dvc(finished, "push")
    assert len([path for path in (tmp_path / "mine").rglob("*") if path.is_file()]) == 5
    assert stored(finished) == before


def test_the_real_data_name_the_bundled_store_and_lie_in_it():
    out = pipeline.read_yaml(toy.ROOT / "data.dvc")["outs"][0]
    assert out["remote"] == "bundled"
    assert (toy.ROOT / "data-store/files/md5" / out["md5"][:2] / out["md5"][2:]).exists()


def test_the_page_of_plots_carries_its_scripts():
    page = (toy.ROOT / ".dvc/plots.html").read_text()
    assert "{plot_divs}" in page
    assert "{scripts}" not in page  # where DVC would put links to a server
    assert "BSD-3-Clause" in page
    assert all(f"/* {name} */" in page for name in ("vega 5.20.2", "vega-lite 5.2.0"))


# ---- drift --------------------------------------------------------------------------------------


def test_drift_tells_what_moved_and_how_far(finished):
    assert toy.svite(finished, "drift") == (
        0,
        "Drift: none; all 3 files of results equal the committed ones.\n",
    )
    (finished / "metrics/run-1.json").write_text('{"top1": 3.5}')
    code, out = toy.svite(finished, "drift")
    assert code == 0
    assert out.splitlines()[-1].split() == ["top1", "3", "1", "-1.5", "metrics/run-1.json:", "top1"]


def test_another_study_is_not_compared(finished):
    params = finished / "params.yaml"
    changed = re.sub(r"epochs: \d+", "epochs: 3", params.read_text(), count=1)
    params.write_text(changed)
    assert "not compared" in toy.svite(finished, "drift")[1]


# ---- smoke --------------------------------------------------------------------------------------


def test_the_toy_study_keeps_every_setting():
    params = pipeline.read_yaml(toy.ROOT / "params.yaml")
    small = chores.toy_params(params)
    for name in ("label", "method", "group"):
        assert [setting.get(name) for setting in small["settings"]] == [each.get(name) for each in params["settings"]]
    assert (len(small["densities"]), len(small["seeds"])) == (2, 1)
    study = Study.of(**small)
    assert {planned.run.recipe.epochs for planned in study.runs} == {1, 2}
    assert {planned.run.recipe.images for planned in study.runs} == {256}
    assert params["recipe"]["epochs"] > 2
