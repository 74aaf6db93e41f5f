"""`./scripts/reproduce tables`: rounds to a test accuracy, the paper's beside ours.

The results are one JSON line for each training as it ends; table and picture are made of them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from common.errors import InputError, RunFailed
from scripts.reproduction.cells import CELLS, GRID, Cell
from scripts.reproduction.running import train
from scripts.results import (
    Panel,
    Result,
    append_result,
    markdown_table,
    plot,
    read_results,
)
from server.storage import layout
from server.storage.run_files import Line, Lines

_HEAD = ("cell", "model", "split", "C", "E", "B", "target")


def choose(names: Sequence[str]) -> list[Cell]:
    """Return the cells of these names; all, if there are none.

    Raises:
        InputError: there is no such cell.
    """
    known = {cell.name: cell for cell in CELLS}
    for name in names:
        if name not in known:
            raise InputError(f"no cell {name!r}; use some of {', '.join(known)}")
    return [known[name] for name in names] or list(CELLS)


def rates(lr: float | None, grid: bool) -> Sequence[float] | None:
    """Return the learning rates that were asked for; None for the cells' own."""
    if lr and grid:
        raise InputError("--lr: not together with --grid")
    if grid:
        return GRID
    return [lr] if lr else None


def show(cells: Iterable[Cell]) -> None:
    """Print the cells."""
    rows = [(*_setting(c), c.label(c.lr), _paper(c), f"≤ {c.aim}") for c in cells]
    print(markdown_table((*_HEAD, "ours by", "paper", "aim"), rows), end="")


def run(
    cells: Sequence[Cell],
    data_dir: Path,
    output: Path,
    seeds: int | None = None,
    rates: Sequence[float] | None = None,
) -> None:
    """Train what the output folder lacks, and write table and picture after each training.

    Args:
        cells: what to train.
        data_dir: folder of the data.
        output: folder of the results.
        seeds: how many, from 0; None for the cells' own number.
        rates: learning rates; None for the cells' own.

    Raises:
        RunFailed: a process of a training did, for another reason than that it diverged.
    """
    output.mkdir(parents=True, exist_ok=True)
    lines = output / "results.jsonl"
    asked = [
        (cell, seed, lr)
        for cell in cells
        for lr in rates or [cell.lr]
        for seed in range(seeds or cell.seeds)
    ]
    for cell, seed, lr in asked:
        wanted = (cell.name, seed, cell.label(lr))
        if wanted not in [(r["cell"], r["seed"], r["by"]) for r in read_results(lines)]:
            name = f"{cell.name}-seed{seed}-lr{lr:g}"
            folder, failure = output / "runs" / name, None
            try:
                rows = train(name, folder, [*cell.flags(seed, lr), "--data-dir", data_dir])
            except RunFailed as error:
                # A training that diverges is an outcome, too; a full disk is none.
                if "was abandoned" not in str(error):
                    raise
                rows, failure = Lines(folder / layout.METRICS).all(), str(error)
            append_result(lines, _result(cell, seed, lr, rows, failure))
        _write(output, read_results(lines))
    print("\n" + _table(read_results(lines)))
    print(f"Table:   {output / 'tables.md'}\nPicture: {output / 'tables.png'}\nResults: {lines}")


def _result(cell: Cell, seed: int, lr: float, rows: Sequence[Line], failure: str | None) -> Result:
    accuracies = [row["global_accuracy"] for row in rows]
    reached = [row["round"] for row in rows if row["global_accuracy"] >= cell.target]
    return {
        "cell": cell.name,
        "seed": seed,
        "by": cell.label(lr),
        "rounds": reached[0] if reached else None,
        "best": max(accuracies, default=0.0),
        "rejected": sum(row["refused"] for row in rows),
        "failure": failure,
        "seconds": sum(row["duration_seconds"] for row in rows),
        "accuracies": accuracies,
    }


def _write(output: Path, results: Sequence[Result]) -> None:
    grid = ", ".join(f"{lr:g}" for lr in GRID)
    text = f"""# Rounds of communication to a test accuracy on MNIST

Tables 1 and 2 of McMahan et al. 2017 (arXiv 1602.05629) beside the same training with Folkmoot's
server and client processes: 100 clients of 600 examples each, the share C of them in a round, E
epochs over batches of B. A round counts once the best accuracy so far on the 10,000 test images
is at the target. Of several seeds, the rounds are the median (lowest to highest); trainings of more
than ten minutes have one seed, and so has their learning rate. A learning rate (lr) at which the
training of a seed diverges, in that the run fails or that an update is left out as far too long, is
no result. The learning rates are from the grid {grid}; the paper's are from
a finer one. "Aim" is what the cell should take here.

{_table(results)}
![Test accuracy by round](tables.png)
"""
    (output / "tables.md").write_text(text, encoding="utf-8")
    plot(output / "tables.png", [_panel(cell, results) for cell in _of(results)])


def _table(results: Sequence[Result]) -> str:
    head = (*_HEAD, "by", "seeds", "paper, rounds", "aim", "ours, rounds", "seconds")
    rows = [
        (
            *_setting(cell),
            by,
            _seeds(seeds) + ("" if len(seeds) > 1 else " only"),
            _paper(cell),
            f"≤ {cell.aim}",
            _outcome(cell, seeds),
            f"{median(result['seconds'] for result in seeds):.0f}",
        )
        for cell in _of(results)
        for by, seeds in _by(cell, results).items()
    ]
    return markdown_table(head, rows)


def _by(cell: Cell, results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return a cell's results by how the server averages and the learning rate, by seed."""
    found: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: int(result["seed"])):
        if result["cell"] == cell.name:
            found.setdefault(result["by"], []).append(result)
    return found


def _seeds(results: Iterable[Result]) -> str:
    return ", ".join(str(result["seed"]) for result in results)


def _of(results: Sequence[Result]) -> list[Cell]:
    """Return the cells that have results, in their order."""
    there = {result["cell"] for result in results}
    return [cell for cell in CELLS if cell.name in there]


def _setting(cell: Cell) -> tuple[object, ...]:
    split = "IID" if cell.partitioner == "iid" else "non-IID"
    model = "2NN" if cell.model == "mlp" else cell.model.upper()
    target = f"{cell.target:.0%}"
    return (cell.name, model, split, cell.fraction, cell.epochs, cell.batch_size, target)


def _paper(cell: Cell) -> str:
    return ", ".join(f"{rounds} ({table})" for table, rounds in cell.paper.items())


def _outcome(cell: Cell, results: Sequence[Result]) -> str:
    diverged = [r for r in results if r.get("failure") or r.get("rejected")]
    if diverged:
        return f"no result: seed {_seeds(diverged)} diverges"
    missed = [result for result in results if result["rounds"] is None]
    if missed:
        most = max(missed, key=lambda result: float(result["best"]))
        best = f"{most['best']:.4f} at best in {len(most['accuracies'])}"
        return f"seed {_seeds(missed)} missed: {best}"
    rounds = sorted(result["rounds"] for result in results)
    middle = median(rounds)
    spread = f" ({rounds[0]}–{rounds[-1]})" if len(rounds) > 1 else ""
    return f"{middle:g}{spread}" + ("" if middle <= cell.aim else ", over the aim")


def _panel(cell: Cell, results: Sequence[Result]) -> Panel:
    lines, repeats = {}, {}
    for by, seeds in _by(cell, results).items():
        # None of a training that diverged in its first round.
        curves = [list(enumerate(r["accuracies"], 1)) for r in seeds if r["accuracies"]]
        if curves:
            label = f"{by}, seed {_seeds(seeds)}"
            lines[label], *repeats[label] = curves
    return Panel(
        title=cell.name,
        lines=lines,
        repeats=repeats,
        levels={f"target {cell.target:.0%}": cell.target},
        lowest=cell.target - 0.1,
    )
