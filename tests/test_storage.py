"""A toy project's results through an S3 server on this machine: pushed from one clone, pulled into another."""

import hashlib
import shutil
from pathlib import Path

import pytest
import toy

from svite.pipeline import chores

boto3 = pytest.importorskip("boto3")
pytest.importorskip("dvc_s3")
server = pytest.importorskip("moto.server")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("storage")]
LOOPBACK = "127.0.0.1"
SETTINGS = {
    **{"AWS_ACCESS_KEY_ID": "toy", "AWS_SECRET_ACCESS_KEY": "toy", "AWS_DEFAULT_REGION": "us-east-1"},
    **{"AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK},
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """An empty bucket on a server of its own; the user's AWS settings count for nothing."""
    empty = tmp_path_factory.mktemp("aws") / "empty"
    empty.touch()
    files = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), str(empty))
    moto = server.ThreadedMotoServer(LOOPBACK, 0, verbose=False)
    moto.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SETTINGS | files).items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        url = "http://{}:{}".format(*moto.get_host_and_port())
        yield boto3.resource("s3", endpoint_url=url).create_bucket(Bucket="toy")
    moto.stop()


@pytest.fixture(scope="module")
def pushed(bucket, tmp_path_factory):
    """The toy project, run to its end, committed, pushed to the bucket."""
    place = tmp_path_factory.mktemp("storage") / "pushed"
    toy.make(place)
    toy.dvc(place, "remote", "add", "--default", "store", "s3://toy/study")
    toy.dvc(place, "remote", "modify", "store", "endpointurl", bucket.meta.client.meta.endpoint_url)
    toy.dvc(place, "repro")
    assert toy.ran(place)
    toy.commit(place)
    toy.dvc(place, "push")
    return place


@pytest.fixture
def clone(pushed, tmp_path):
    """A clone of it, with an empty cache."""
    chores.git("clone", "--quiet", str(pushed), str(tmp_path / "clone"))
    return tmp_path / "clone"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bucket_holds_the_outputs_that_git_does_not(pushed, bucket):
    kept = {"".join(item.key.split("/")[-2:]) for item in bucket.objects.all()}
    names = {
        folder: {hashlib.md5(c).hexdigest() for c in contents(pushed / folder).values()}
        for folder in ("out", "metrics")
    }
    assert names["out"] <= kept
    assert not names["metrics"] & kept
    assert hashlib.md5((pushed / "data/x").read_bytes()).hexdigest() not in kept  # the bundled store has it


def test_what_was_pushed_is_pulled_and_not_run_again(pushed, clone):
    assert not (clone / "out").exists()
    toy.dvc(clone, "pull")
    assert contents(clone / "out") == contents(pushed / "out")
    code, out = toy.svite(clone, "repro")
    assert (code, out.splitlines()[0]) == (0, chores.IDLE)
    assert toy.ran(clone) == []


def test_a_stage_that_is_asked_for_comes_alone(clone):
    toy.dvc(clone, "pull", "total")
    assert [*contents(clone / "out")] == ["total"]


def test_a_change_runs_where_it_is_made_and_is_pulled_where_it_is_not(pushed, clone, tmp_path):
    toy.dvc(clone, "pull")
    params = clone / "params.yaml"
    params.write_text(params.read_text().replace("seeds: [0, 1, 2]", "seeds: [0, 1, 2, 7]"))
    toy.dvc(clone, "repro")
    assert toy.ran(clone) == ["run-7", "total"]
    toy.commit(clone)
    toy.dvc(clone, "push")
    other = shutil.copytree(pushed, tmp_path / "other")
    chores.git("pull", "--quiet", "--ff-only", str(clone), cwd=other)
    toy.dvc(other, "pull")
    assert toy.dvc(other, "status") == "Data and pipelines are up to date.\n"
    assert contents(other / "out") == contents(clone / "out")
