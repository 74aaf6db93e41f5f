"""Starts a server and clients as processes on this machine, and shows how training goes.

Clients beyond five share five processes. Whatever it starts it ends, on every way out. The flags
are the server's.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from common.commands import command
from common.printable import counted
from common.process import exit_status
from scripts.federation import Training, end_on_signals, spread
from server.configuration import own_code, parse
from server.options import ServerOptions
from server.storage import layout
from server.storage.columns import COLUMNS, Shown, columns
from server.storage.run_files import Line, RunFiles, own_numbers

_PROCESSES = 5
_DESCRIPTION = (
    "Starts a server and its clients, in up to five processes, on this machine, and shows how "
    "training goes. All options are the server's."
)


def main(argv: Sequence[str]) -> int:
    """Return the server's exit status, or 130 after Ctrl-C."""
    end_on_signals()
    try:
        return exit_status(lambda: _run(argv))
    except KeyboardInterrupt:
        return 130


def _run(argv: Sequence[str]) -> int:
    options = parse(argv, command("quickstart"), _DESCRIPTION)
    if options is None:
        return 0
    folder = options.run.run_dir or Path()
    try:
        return _train(options, argv)
    except KeyboardInterrupt:
        if (folder / layout.CONFIG).exists():
            again = f"{command('quickstart')} --run-dir {folder} --resume{own_code(options)}"
            print(f"\nInterrupted. Go on: {again}", file=sys.stderr)
        raise


def _train(options: ServerOptions, argv: Sequence[str]) -> int:
    partitions = options.split.num_partitions
    clients = spread(partitions, _PROCESSES)
    console = Console()
    with Training(argv, options, clients) as training:
        folder = training.folder
        if training.address is None:
            print("The run has ended already; a larger --rounds goes on with it.")
            return 0
        shared = f" in {len(clients)} processes" if len(clients) < partitions else ""
        everyone = counted(partitions, "client")
        print(f"Server on {training.address}, {everyone}{shared}, run directory {folder}")
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("0 rounds", total=options.run.rounds)
            try:
                for row in training.rows():
                    _tell(training.failures(), console)
                    console.print(_line(row, options.run.rounds), highlight=False, soft_wrap=True)
                    known = row["round"]
                    progress.update(bar, completed=known, description=counted(known, "round"))
            finally:
                _tell(training.failures(), console)
    _report(folder, options)
    return 0


def _tell(failures: Iterable[str], console: Console) -> None:
    for line in failures:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _line(row: Line, rounds: int) -> str:
    accuracy, loss = row["global_accuracy"], row["global_loss"]
    shown = [f"round {row['round']:>3}/{rounds}"]
    if accuracy is not None:
        shown.append(f"accuracy {accuracy:.4f}")
    if loss is not None:
        shown.append(f"loss {loss:.4f}")
    shown += [f"{name.replace('_', ' ')} {own:.4f}" for name, own in _own_of_server(row).items()]
    shown.append(f"{row['accepted']} of {row['cohort_size']} updates")
    shown.append(f"{row['duration_seconds']:.1f} s")
    return "   ".join(shown)


def _own_of_server(row: Line) -> dict[str, float]:
    return {
        name.removeprefix("global_"): value
        for name, value in own_numbers(row).items()
        if name.startswith("global_") and not _is_loss(row, name)
    }


def _is_loss(row: Line, name: str) -> bool:
    """Say whether a task's own metric is the loss again, as the squared error of numbers is."""
    loss, value = row["global_loss"], own_numbers(row).get(name)
    return loss is not None and value is not None and math.isclose(loss, value, rel_tol=1e-5)


def _report(folder: Path, options: ServerOptions) -> None:
    rows = RunFiles(folder).metrics.all()
    shown = [{**row, **own_numbers(row)} for row in rows]
    own = dict.fromkeys(
        name for row in rows for name in own_numbers(row) if not _is_loss(row, name)
    )
    names = {"round": "round"}
    names |= {column.short: column.name for column in columns(shown=Shown.TERMINAL)}
    names |= {_label(name): name for name in own}
    # What nobody measures has no column.
    there = {
        label: name
        for label, name in names.items()
        if any(row.get(name) is not None for row in shown)
    }
    table = Table(title=f"{options.run.task}, {counted(len(rows), 'round')}")
    for label in there:
        # A word that is cut says nothing.
        table.add_column(label, min_width=max(map(len, label.split())))
    for row in shown:
        table.add_row(*(_cell(name, row.get(name)) for name in there.values()))
    console = Console()
    console.print(table)
    last = rows[-1]
    for measure in ("accuracy", "loss"):
        name = f"global_{measure}"
        if last[name] is not None:
            best = next(row for row in rows if row["round"] == last["best_round"])
            print(
                f"Final {measure} on the test set: {last[name]:.4f} "
                f"(best: {best[name]:.4f} in round {best['round']})"
            )
            break
    model = layout.model(folder)
    print(f"Model:   {model} and {model.with_suffix('.pth')}")
    print(f"Metrics: {folder / layout.METRICS} and {folder / layout.TABLE}")
    print(
        f"Go on:   {command('quickstart')} --run-dir {folder} --resume "
        f"--rounds {2 * options.run.rounds}{own_code(options)}"
    )


def _label(name: str) -> str:
    words = name.removeprefix("global_").replace("_", " ")
    return f"clients' {words.removeprefix('client ')}" if name.startswith("client_") else words


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return COLUMNS[name].text(value) if name in COLUMNS else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
