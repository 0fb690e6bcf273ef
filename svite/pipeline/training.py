"""The command `svite train`, which torchrun and `accelerate launch` know as `-m svite train`."""

import argparse
import os
import signal
import sys
from pathlib import Path

from svite.params.recipe import Images, read
from svite.params.run import Training

TERMINATED = 128 + signal.SIGTERM


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    made = argparse.ArgumentParser(
        prog="svite train",
        description="Train one model, or go on training it. SVITE_DEVICE=cpu or cuda in the environment says on what, "
        "SVITE_THREADS on how many threads a process.",
    )
    made.add_argument("--params", required=True, help="the run: recipes/deit_small_imagenet.yaml, say")
    made.add_argument("--output", type=folder, default="scratch", help="folder for model, metrics and curves (scratch)")
    made.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="recipe.lr=0.001 seed=1 ..."
    )
    made.add_argument("--processes", type=positive, default=1, help="start so many processes on this machine (1)")
    made.add_argument("--shard", action="store_true", help="shard weights and optimizer over the processes (FSDP2)")
    return made


def positive(text: str) -> int:
    """A number of processes."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' should be a whole number from 1 on")
    return int(text)


def folder(text: str) -> str:
    """A folder, which "$NOTHING" would not be."""
    if not text:
        raise argparse.ArgumentTypeError("it should name a folder; . is this one")
    return text


def main() -> None:
    """The module's own command line."""
    run(parser().parse_args())


def run(options: argparse.Namespace) -> None:
    """Train as the options say, here or in processes of their own.

    Ends with one sentence where that can't be done, and with status 143 where it was asked to end and has saved.
    """
    try:
        _train_until_asked(options)
    except KeyboardInterrupt:
        sys.exit("\nStopped; the same command goes on from its last checkpoint.")
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        sys.exit(f"svite: {str(error) or 'There is too little memory.'}")


def _train_until_asked(options: argparse.Namespace) -> None:
    from svite.train.ending import Stopped, until_asked

    try:
        with until_asked(_terminate):
            _train(options)
    except Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(TERMINATED)


def _terminate() -> None:
    from svite.train.ending import Stopped

    raise Stopped("Stopped; the same command goes on from its last checkpoint.")


def _train(options: argparse.Namespace) -> None:
    training = read(options.params, Training, options.set)
    started = os.environ.get("WORLD_SIZE")
    if options.processes > 1 and started not in (None, str(options.processes)):
        raise ValueError(
            f"--processes is {options.processes}, but a launcher has already started {started} (WORLD_SIZE); leave "
            "--processes out, or unset WORLD_SIZE."
        )
    if options.shard and max(options.processes, int(started or 1)) == 1:
        print("--shard has no other process to share with: this one holds all weights.", flush=True)
    if options.processes > 1 and started is None:
        from svite.train.launch import launch

        launch(training, options.output, options.processes, options.shard)
    else:
        train_here(training, Path(options.output), options.shard)


def train_here(training: Training, folder: Path, shard: bool = False) -> None:
    """Train in this process, as one of those that a launcher started or by itself."""
    from svite.params.device import working
    from svite.study import results
    from svite.train.told import unused

    first = int(os.environ.get("RANK", "0")) == 0
    if first and (found := unused(training)):
        print(f"Not used in this run: {'; '.join(found)}.", flush=True)
    data = training.data if isinstance(training.data, Images) else results.data_for(training.run, training.data)
    checkpoint = folder / ".scratch" / f"{training.key}.ckpt"
    source = results.source_for(training.run, data)
    if first:
        print(*source.told, working(), sep="\n", flush=True)
    trained = results.train(training.run, data, folder, training.start, checkpoint, shard=shard, source=source)
    last = trained.epochs[-1]
    if first:
        print(f"{training.key}: validation {last['validation_top1']:.2f} %; {folder}/models/{training.key}.safetensors")
