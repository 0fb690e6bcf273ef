"""Real processes whose parameters FSDP2 shards, against one process that has them whole: the same topology on each.

All is reckoned in 64 bits, so that the order of a sum decides nothing.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharded_processes import METHODS, RESUMED
from tiny import same

WORKER = Path(__file__).parent / "sharded_processes.py"
UPDATES = (4, 8)

pytestmark = pytest.mark.xdist_group("sharded")


def started(folder: Path, ranks: int) -> list[dict]:
    """What each of so many processes saw: one dictionary a rank."""
    command = [sys.executable, "-W", "error::FutureWarning", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(ranks), folder], stderr=subprocess.PIPE) for rank in range(ranks)
    ]
    try:
        for worker in workers:
            _, said = worker.communicate(timeout=300)
            assert worker.returncode == 0, said.decode()
    finally:
        for worker in workers:
            worker.kill()  # one that waits for another that failed
            worker.communicate()
    return [torch.load(folder / f"{rank} of {ranks}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder):
    return started(folder, 2)


@pytest.fixture(scope="module")
def one(folder, two):
    return started(folder, 1)[0]


@pytest.fixture(scope="module")
def four(folder, two):
    return started(folder, 4)


def alike(sharded: dict, plain: dict) -> bool:
    """The same topologies, and weights up to rounding."""
    near = all(torch.allclose(sharded["weights"][n], w, rtol=0, atol=1e-10) for n, w in plain["weights"].items())
    return near and same(sharded["masks"], plain["masks"])


def agree(sharded: dict, plain: dict) -> bool:
    """Alike, with the same counts and history."""
    return alike(sharded, plain) and all(sharded[key] == plain[key] for key in ("density", "itop", "summary"))


@pytest.mark.parametrize("method", METHODS)
def test_sharded_training_is_that_of_whole_parameters(method, one, two):
    assert all(agree(rank[method], one[method]) for rank in two)


def test_the_topologies_compared_did_change(one):
    moved = {m: sum(row["born"] + row["died"] for row in one[m]["summary"]) for m in METHODS}
    assert {m for m, n in moved.items() if not n} == {"omp", "snip", "group"}  # at once, and nobody before the end


def test_nothing_is_sent_but_scores_at_an_update(two):
    for rank in two:
        assert [step for step, sent in enumerate(rank["local"]["sent"]) if sent] == list(UPDATES)
        sent = {message for step in rank["local"]["sent"] for message in step}
        gathered = {message for message in sent if message[:2] == ("all_gather_into_tensor", "torch.float64")}
        assert sent - gathered == {("all_reduce", "torch.float64", 1)}  # the sum that is finite where all gradients are


def holds_its_shard_only(found: dict) -> bool:
    """A byte of masks for each entry of the shard, and two bits a member: who lives, and who ever did."""
    rows = len(found["rows"])
    return found["held"] == found["shard"] and found["bits"] <= 2 * (found["all"] / 8 + rows)


def test_a_rank_holds_the_masks_of_its_own_shard_only(two):
    assert all(holds_its_shard_only(rank["local"]) for rank in two)
    shards = [rank["local"]["shard"] for rank in two]
    assert sum(shards) == two[0]["local"]["all"]
    assert max(shards) < 0.51 * sum(shards)


def test_the_dead_of_a_shard_are_zero_with_their_gradients_and_moments(two):
    for rank in two:
        steps = rank["local"]["dead"]
        assert not any(steps)


def test_the_newborn_of_a_shard_have_fresh_moments(one, two):
    births = [[born for born, _, _ in rank["local"]["born"]] for rank in two]
    assert [sum(both) for both in zip(*births, strict=True)] == [born for born, _, _ in one["local"]["born"]]
    for rank in two:
        assert all(born > 0 and fresh == 0 and kept > 0 for born, fresh, kept in rank["local"]["born"])


def test_a_hooked_and_clipped_loop_is_that_of_whole_parameters(one, two):
    for rank in two:
        assert rank["attached"]["norms"] == pytest.approx(one["attached"]["norms"], rel=1e-10)
        assert alike(rank["attached"], one["attached"])


@pytest.mark.parametrize("how", ["heard", "heard apart"])
def test_what_outputs_do_to_the_loss_is_the_mean_over_the_images_of_all_ranks(how, one, two):
    for rank in two:
        assert rank[how].keys() == one[how].keys() == {"blocks.0.attn.heads", "blocks.0.mlp.neurons"}
        for name, scores in rank[how].items():
            torch.testing.assert_close(scores, one[how][name], rtol=1e-8, atol=1e-12)
            assert scores.min() > 0


def test_a_copy_of_the_model_is_made_as_sparse_whether_whole_or_sharded(two):
    for rank in two:
        whole, sharded = rank["attached"]["copies"]
        assert same(whole, sharded)
        assert all(torch.equal(whole[name] != 0, mask) for name, mask in rank["attached"]["masks"].items())


def test_narrow_layers_train_alike_also_where_parts_of_them_are_gathered_alone(one, two):
    assert all(agree(rank["narrow"], one["s2vite"]) for rank in two)


def test_heads_and_neurons_are_born_too_where_evaluation_has_left_all_gathered(one, two):
    assert all(agree(rank["at once"], one["s2vite"]) for rank in two)
    assert sum(row["born"] for row in one["s2vite"]["summary"]) > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_state_is_that_of_whole_parameters(method, one, two):
    whole = one[method]["saved"]["sparsifier"]
    for rank in two:
        saved = rank[method]["saved"]["sparsifier"]
        assert saved.keys() == whole.keys()
        assert same(saved["alive"], whole["alive"])
        assert same(saved["history"]["ever"], whole["history"]["ever"])
        assert all(saved["history"][key] == whole["history"][key] for key in ("born", "died", "updates"))
        assert all(saved[key] == whole[key] for key in ("step", "pending", "shapes"))
        torch.testing.assert_close(saved["scores"], whole["scores"])
    assert (method == "taylor") == bool(whole["scores"]["sums"])


@pytest.mark.parametrize("method", RESUMED)
def test_what_two_ranks_saved_one_and_two_take_up(method, one, two):
    assert all(agree(rank["resumed"][method], one[method]) for rank in (one, *two))


@pytest.mark.slow
def test_what_two_ranks_saved_four_take_up(one, four):
    assert all(agree(rank["resumed"][method], one[method]) for rank in four for method in RESUMED)


@pytest.mark.slow
def test_shards_may_be_uneven_and_empty(four):
    assert [rank["local"]["rows"]["head.weight"] for rank in four] == [2, 2, 1, 0]
    for rank in four:
        assert holds_its_shard_only(rank["local"])
        assert not any(rank["local"]["dead"])


@pytest.mark.slow
def test_replicas_of_shards_train_alike(one, four):
    assert all(agree(rank["hybrid"], one["taylor"]) for rank in four)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("early", r"^`fully_shard` has replaced patch_embed\.proj\.weight; build the sparsifier after it\.$"),
        ("gates", r"^FSDP2 does not know .* as a gate's would"),
        ("scales", r"^FSDP2 does not know .* as LayerScale's would"),
        ("tokens", r"^FSDP2 does not know .* as a selector's would"),
    ],
)
def test_what_can_not_work_is_refused(asked, said, two):
    for rank in two:
        assert re.search(said, rank["refused"][asked])
