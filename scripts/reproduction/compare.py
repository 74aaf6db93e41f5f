"""`./scripts/compare`: federated training against the same training on the pooled data.

What is the same: the initial model, the training examples (those of all partitions, without
their validation parts), the held-out examples, the batch size, momentum and weight decay, and
the number of examples processed between one evaluation and the next, to a whole batch. The
centralised training is one process with as many torch threads as a client has.

The learning rate is the clients', too, which is fair only near enough: a mean over many
clients forgives a higher rate than a single model does, and a rate tuned for one side favours
it. --centralised-lr gives the pooled training a rate of its own; tune both for a verdict.
Seconds depend on the machine: there the clients share its cores, and take turns in a process.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from common.commands import command
from common.errors import InputError
from common.logs import configure_logs
from common.printable import counted
from common.process import exit_status
from common.tasks import load_examples, load_task
from scripts.federation import Training, end_on_signals, spread
from scripts.results import Panel, markdown_table, plot
from server.configuration import data_split, parse, train_config
from server.options import ServerOptions
from server.storage.run_files import Line, RunFiles

_CLIENTS = 5
_DESCRIPTION = (
    "Trains both ways, and writes a table and a plot of what came of it. All options are the "
    "server's but two, which are shown last."
)
_FLAGS = """\
The comparison
  --output FOLDER          For comparison.md and comparison.png; the run directory if not given.
  --centralised-lr RATE    Learning rate of the training on the pooled data; --lr if not given."""


class Point(NamedTuple):
    """Where a training stands after a round, or as many examples."""

    round: int
    examples: int
    seconds: float
    accuracy: float


def main(argv: Sequence[str]) -> int:
    """Return the exit status: 0 done, 1 failed, 2 wrong input, 130 after Ctrl-C."""
    end_on_signals()
    configure_logs(readable=True)
    try:
        return exit_status(lambda: compare(argv))
    except KeyboardInterrupt:
        print("\nEnding the processes ...", file=sys.stderr)
        return 130


def compare(argv: Sequence[str]) -> int:
    """Train both ways by the server's flags and compare's own; return 0.

    Raises:
        InputError: wrong input.
        RunFailed: a process did.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--output", type=Path)
    own.add_argument("--centralised-lr", type=float)
    try:
        given, rest = own.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    options = parse(rest, command("compare"), _DESCRIPTION)
    if options is None:
        print(_FLAGS)
        return 0
    if not options.evaluation.evaluate_every:
        raise InputError("--evaluate-every: with 0 there is no accuracy to compare; leave it out")
    _train_federated(options, rest)
    # As the server resolved them.
    again = ["--run-dir", str(options.run.run_dir), "--resume", "--task", options.run.task]
    options = parse(again) or options
    federated = _points(
        RunFiles(options.run.run_dir or Path()).metrics.all(), options.training.local_epochs or 1
    )
    if not federated:
        raise InputError(f"--task: {options.run.task} has no accuracy to compare")
    centralised = _centralised(options, federated, given.centralised_lr)
    output = given.output or options.run.run_dir or Path()
    output.mkdir(parents=True, exist_ok=True)
    _write(output, options, given.centralised_lr, federated, centralised)
    return 0


def _train_federated(options: ServerOptions, argv: Sequence[str]) -> None:
    console = Console()
    clients = spread(options.split.num_partitions, _CLIENTS)
    with Training(argv, options, clients) as training:
        console.print(f"Federated: {len(clients)} client processes, run in {training.folder}")
        for row in training.rows():
            if row["global_accuracy"] is not None:
                console.print(_line(row["round"], row["global_accuracy"]), highlight=False)


def _points(rows: Sequence[Line], epochs: int) -> list[Point]:
    """Return where the evaluated rounds stand."""
    examples = accumulate(row["num_examples"] * epochs for row in rows)
    seconds = accumulate(row["duration_seconds"] for row in rows)
    return [
        Point(row["round"], done, gone, row["global_accuracy"])
        for row, done, gone in zip(rows, examples, seconds, strict=True)
        if row["global_accuracy"] is not None
    ]


def _centralised(
    options: ServerOptions, federated: Sequence[Point], lr: float | None
) -> list[Point]:
    # What imports torch waits until the clients need it no more.
    import torch

    from client.data import divide
    from scripts.reproduction.centralised import pool, train
    from server.app import initial_model

    run, console = options.run, Console()
    torch.set_num_threads(options.process.threads)
    task = load_task(run.task)
    split = data_split(options.split)
    examples, parts, _ = divide(task, run.data_dir, split)
    pooled = pool(examples, parts, split)
    console.print(f"Centralised: {len(pooled.inputs)} examples")
    config = train_config(options.training)
    if lr:
        config = replace(config, learning_rate=lr)
    points = []
    reached = train(
        task,
        initial_model(task, run.model or "", run.seed, config.hyperparameters),
        pooled,
        load_examples(task, run.data_dir, train=False),
        config,
        run.seed,
        [point.examples for point in federated],
    )
    for other, stand in zip(federated, reached, strict=True):
        accuracy = stand.metrics["accuracy"]
        points.append(Point(other.round, stand.examples, stand.seconds, accuracy))
        console.print(_line(other.round, accuracy), highlight=False)
    return points


def _line(number: int, accuracy: float) -> str:
    return f"round {number:>3}   accuracy {accuracy:.4f}"


def _write(
    output: Path,
    options: ServerOptions,
    lr: float | None,
    federated: Sequence[Point],
    centralised: Sequence[Point],
) -> None:
    training, split = options.training, options.split
    rate = f"{training.lr:g}"
    rates = f"learning rate {rate}" + (f", centralised {lr:g}" if lr else " for both")
    head = ("round", "examples", "federated", "centralised", "seconds, federated", "centralised")
    rows = [
        (
            fed.round,
            fed.examples,
            f"{fed.accuracy:.4f}",
            f"{central.accuracy:.4f}",
            f"{fed.seconds:.1f}",
            f"{central.seconds:.1f}",
        )
        for fed, central in zip(federated, centralised, strict=True)
    ]
    best = [max(point.accuracy for point in side) for side in (federated, centralised)]
    clients = counted(split.num_partitions, "client")
    text = f"""# Federated against centralised: {options.run.task}, {options.run.model}

{clients} ({split.partitioner}), the share {options.cohort.fraction:g} of them
in a round; local epochs: {training.local_epochs}, batches of {training.batch_size}, {rates}. The
centralised training starts from the same model and has processed as many of the same examples.
Accuracy on the same held-out examples; best: federated {best[0]:.4f}, centralised {best[1]:.4f}.

{markdown_table(head, rows)}
![Accuracy by examples and by seconds](comparison.png)
"""
    (output / "comparison.md").write_text(text, encoding="utf-8")
    sides = {"federated": federated, "centralised": centralised}
    panels = [
        Panel(
            title=f"{options.run.task}, {options.run.model}",
            lines={
                name: [(getattr(p, x), p.accuracy) for p in side] for name, side in sides.items()
            },
            x_label=label,
        )
        for x, label in (("examples", "examples processed"), ("seconds", "seconds"))
    ]
    plot(output / "comparison.png", panels)
    print(f"\n{text}")
    print(f"Table:   {output / 'comparison.md'}\nPicture: {output / 'comparison.png'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
