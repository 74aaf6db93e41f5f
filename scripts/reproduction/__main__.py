"""`./scripts/reproduce`: a sub-command for each experiment."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from scripts.cli import command_line, run_app
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

app = command_line(
    "reproduce",
    "Runs experiments with real server and client processes. Results are kept as "
    "they come: started again, a command goes on where it was interrupted.",
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


# The others by their modules, which are imported when they are wanted.
_EXPERIMENTS = {
    "hostile": "Let 2 of 10 clients attack, under FedAvg and under strategies that withstand it.",
    "writers": "Train on MNIST's 539 writers; evaluate on each of them, also fine-tuned.",
    "shakespeare": "Predict the next character of 100 roles, beside centralised training.",
    "next_word": "Predict the next word, beside unigrams and bigrams.",
}


def _command(module: str, name: str) -> Callable[..., None]:
    def run(
        *, data_dir: DataDir = Path("data"), output: Output = Path(f"runs/reproduce-{name}")
    ) -> None:
        import_module(f"scripts.reproduction.{module}").run(data_dir, output)

    return run


for module, does in _EXPERIMENTS.items():
    name = module.replace("_", "-")
    app.command(_command(module, name), name=name, help=does)


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
