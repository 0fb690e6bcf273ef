"""Processes that read images ahead of the training."""

import os
import signal
from collections.abc import Generator, Iterable
from multiprocessing import forkserver, resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader

from svite.data.cache import Unavailable
from svite.data.views import Seen, Viewed, Wanted, collate
from svite.params.device import takes_gpu

DIED = ("exited unexpectedly", "is killed by signal")  # in what torch says of a worker


def delivered(viewed: Viewed, batches: Iterable[list[Wanted]], workers: int) -> Generator[Seen]:
    """Each of `batches`, in order, made by so many workers or, without any, by this process.

    Raises Unavailable for a shard that can't be had; RuntimeError, in one sentence, for a worker that died.
    """
    loader = DataLoader(
        viewed,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=takes_gpu(),
        worker_init_fn=_apart,
        multiprocessing_context=_forkserver() if workers else None,
        generator=torch.Generator(),  # else the seed that it gives each worker is drawn from the training's
    )
    try:
        for seen in loader:
            if isinstance(seen, Unavailable):
                raise seen
            yield seen
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:  # the others: while it handed over
        if isinstance(error, RuntimeError) and not any(said in str(error) for said in DIED):
            raise
        raise RuntimeError(
            "A process that reads images has died: of what it said above, or else of too little memory; then take "
            "fewer data.workers, or give the machine (the container's /dev/shm too) more. The last checkpoint stands."
        ) from error


def _forkserver() -> Any:
    """Where workers come from: a process without threads, which has imported once what they need.

    To fork this one would not be safe beside its threads; a fresh interpreter takes seconds, each time.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["svite.data.views"])
    resource_tracker.ensure_running()  # to start it would let SIGTERM through again
    # Where all of the training's processes are told to end, the server may not, for its workers would end with it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _apart(worker: int) -> None:
    """Let no signal reach a worker that is meant for the training: it first saves, and then ends its workers."""
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # by which it does
