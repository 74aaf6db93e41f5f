"""`./scripts/reproduce`: a sub-command for each experiment."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from scripts.cli import run_app
from scripts.federation import end_on_signals
from scripts.reproduction import tables as cells

DataDir = Annotated[Path, Parameter(help="Folder of the data, downloaded there if missing.")]
Names = Annotated[str, Parameter(help="Cells to run; all of them if none is named.")]
Output = Annotated[Path, Parameter(help="Folder of the results, and of the runs that made them.")]
Seeds = Annotated[
    int | None,
    Parameter(help="How many seeds, from 0, in place of the cells' own.", validator=Number(gte=1)),
]
Rate = Annotated[
    float | None,
    Parameter(help="Learning rate in place of the cells' own.", validator=Number(gt=0)),
]
Grid = Annotated[bool, Parameter(help="Try all learning rates of the grid.", negative=())]
List = Annotated[bool, Parameter(help="Print the cells, and run none.", negative=())]

app = App(
    name="./scripts/reproduce",
    help="Runs experiments with real server and client processes. Results are kept as "
    "they come: started again, a command goes on where it was interrupted.",
    version_flags=(),
    help_format="plaintext",
)


@app.command
def tables(
    *names: Names,
    data_dir: DataDir = Path("data"),
    output: Output = Path("runs/reproduce-tables"),
    seeds: Seeds = None,
    lr: Rate = None,
    grid: Grid = False,
    list: List = False,  # noqa: A002
) -> None:
    """Count the rounds to a test accuracy: McMahan et al. 2017, tables 1 and 2, on MNIST."""
    chosen = cells.choose(names)
    if list:
        cells.show(chosen)
    else:
        cells.run(chosen, data_dir, output, seeds, cells.rates(lr, grid))


@app.command
def hostile(
    *, data_dir: DataDir = Path("data"), output: Output = Path("runs/reproduce-hostile")
) -> None:
    """Let 2 of 10 clients attack, under FedAvg and under strategies made to withstand it."""
    # Imports torch, which the other commands need not wait for.
    from scripts.reproduction import hostile as attacks

    attacks.run(data_dir, output)


@app.command
def writers(
    *, data_dir: DataDir = Path("data"), output: Output = Path("runs/reproduce-writers")
) -> None:
    """Train on MNIST's 539 writers, and see the model at each of them, also fine-tuned."""
    from scripts.reproduction import writers as experiment

    experiment.run(data_dir, output)


@app.command
def shakespeare(
    *, data_dir: DataDir = Path("data"), output: Output = Path("runs/reproduce-shakespeare")
) -> None:
    """Predict the next character on the 100 largest roles, against centralised training."""
    from scripts.reproduction import shakespeare as experiment

    experiment.run(data_dir, output)


@app.command
def next_word(
    *, data_dir: DataDir = Path("data"), output: Output = Path("runs/reproduce-next-word")
) -> None:
    """Predict the next word, against unigrams and bigrams."""
    from scripts.reproduction import next_word as experiment

    experiment.run(data_dir, output)


def main() -> int:
    """Return the exit status: 0 done, 1 failed, 2 wrong input, 130 after Ctrl-C."""
    end_on_signals()
    try:
        return run_app(app)
    except KeyboardInterrupt:
        print("\nEnded; the same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
