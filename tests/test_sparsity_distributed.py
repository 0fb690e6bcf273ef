"""Two real processes: the same topology on each from averaged gradients, without a broadcast of masks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both processes saw: one dictionary a rank."""
    folder = tmp_path_factory.mktemp("ranks")
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error::FutureWarning", WORKER, str(rank), folder], stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, said = worker.communicate(timeout=240)
        assert worker.returncode == 0, said.decode()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("method", ["svite", "set", "taylor", "s2vite"])
def test_masks_agree_on_all_ranks_without_being_sent(ranks, method):
    first, second = (rank[method] for rank in ranks)
    assert first["alive"].keys() == second["alive"].keys()
    assert all(torch.equal(first["alive"][name], second["alive"][name]) for name in first["alive"])
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert first["born"] == second["born"]
    assert first["changed"]
    sent = 2 if method == "s2vite" else 0  # the sums of its heads' outputs, at steps 4 and 8
    assert first["collectives"] == second["collectives"] == sent


@pytest.mark.parametrize(("how", "same"), [("ddp", "all"), ("compiled", "all"), ("accumulated", "of two")])
def test_what_outputs_do_to_the_loss_is_the_mean_over_the_images_of_all_ranks(ranks, how, same):
    first, second = (rank["heard"] for rank in ranks)
    for name, scores in first[same].items():
        assert torch.equal(first[how][name], second[how][name])
        torch.testing.assert_close(first[how][name], scores, rtol=1e-3, atol=1e-6)
        assert not torch.allclose(first["alone"][name], second["alone"][name], rtol=0.1)


def test_each_rank_saw_other_images_and_averaged_its_gradients(ranks):
    assert ranks[0]["svite"]["loss"] != ranks[1]["svite"]["loss"]


def test_the_averaged_run_is_the_run_of_one_process_on_both_halves(ranks):
    """The topology of one process that sees the whole batch, for as long as rounding does not tell them apart."""
    alone, together = ranks[0]["alone"], ranks[0]["svite"]["first_update"]
    same = sum(int((alone[name] == together[name]).sum()) for name in alone)
    assert same / sum(alive.numel() for alive in alone.values()) > 0.999


def test_names_are_plain_under_ddp_and_compile(ranks):
    names = list(ranks[0]["svite"]["alive"])
    assert "blocks.0.attn.qkv.weight" in names
    assert not any(name.startswith(("module", "_orig_mod")) for name in names)


def test_clipping_under_ddp_sees_masked_gradients_when_attached(ranks):
    for rank in ranks:
        found = rank["attached"]
        assert found["dead gradients at steps"] == [4, 8]
        assert found["steps"] == 10
        assert found["born"] > 0
    assert ranks[0]["attached"]["norms"] == ranks[1]["attached"]["norms"]
    weights = [rank["attached"]["weights"] for rank in ranks]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
