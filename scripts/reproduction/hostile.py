"""`./scripts/reproduce hostile`: two of ten clients attack, and strategies withstand or not.

The hostile clients are real processes that train as all do, and push their update with the
wrong sign and ten times as long. MNIST, the 2NN, IID.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from common.errors import RunFailed
from scripts.reproduction.running import train
from scripts.reproduction.tasks import HOSTILE
from scripts.results import (
    Panel,
    Result,
    append_result,
    markdown_table,
    plot,
    read_results,
)
from server.storage import layout
from server.storage.run_files import Lines

_TASK = "scripts.reproduction.tasks:AttackedMnist"
_HONEST = ("0-3", "4-7")
_ATTACKERS = "8-9"
# By what the table calls it: the server's flags, and whether the two are hostile.
_TRIALS: dict[str, tuple[Sequence[object], bool]] = {
    "FedAvg, no attack": (("--strategy", "fedavg"), False),
    "FedAvg": (("--strategy", "fedavg"), True),
    "median": (("--strategy", "median"), True),
    "trimmed mean": (("--strategy", "trimmed-mean"), True),
    "Multi-Krum": (("--strategy", "multi-krum", "--num-hostile", 2), True),
}


def run(
    data_dir: Path,
    output: Path,
    rounds: int = 15,
    seeds: int = 3,
    task: str = _TASK,
    model: str = "mlp",
) -> None:
    """Train what the output folder lacks, and write table and picture after each training."""
    output.mkdir(parents=True, exist_ok=True)
    lines = output / "results.jsonl"
    asked = [(seed, name) for seed in range(seeds) for name in _TRIALS]
    for seed, name in asked:
        if (seed, name) not in [(r["seed"], r["name"]) for r in read_results(lines)]:
            strategy, attacked = _TRIALS[name]
            folder = output / "runs" / f"{name.lower().replace(' ', '-').replace(',', '')}-{seed}"
            flags = [*_flags(task, model, rounds, seed, data_dir), *strategy]
            environments = {_ATTACKERS: {HOSTILE: "1"}} if attacked else {}
            failure = None
            try:
                title = f"{name}, seed {seed}"
                rows = train(title, folder, flags, (*_HONEST, _ATTACKERS), environments)
            except RunFailed as error:
                # A model that an attack drove to infinity is a result, too; a full disk is none.
                if "was abandoned" not in str(error):
                    raise
                rows, failure = Lines(folder / layout.METRICS).all(), str(error)
            accuracies = [row["global_accuracy"] for row in rows]
            result = {"name": name, "seed": seed, "failure": failure, "accuracies": accuracies}
            append_result(lines, result)
        _write(output, read_results(lines))
    print("\n" + _table(read_results(lines)))
    print(f"Table:   {output / 'hostile.md'}\nPicture: {output / 'hostile.png'}\nResults: {lines}")


def _flags(task: str, model: str, rounds: int, seed: int, data_dir: Path) -> list[object]:
    return [
        *("--task", task, "--model", model, "--rounds", rounds, "--seed", seed),
        *("--data-dir", data_dir, "--num-partitions", 10, "--partitioner", "iid"),
        *("--min-clients", 10, "--validation-fraction", 0, "--client-evaluate-every", 0),
        *("--local-epochs", 1, "--batch-size", 32, "--lr", 0.1, "--keep-rounds", 1),
        # So that the strategies alone withstand, or not.
        *("--max-norm-ratio", 0),
    ]


def _write(output: Path, results: Sequence[Result]) -> None:
    text = f"""# Two hostile clients of ten

MNIST, the 2NN, IID, one local epoch over batches of 32, learning rate 0.1. The hostile clients
push their update with the wrong sign and ten times as long; in the first training, nobody does.
Figures are the median of the seeds (lowest to highest). `--max-norm-ratio` is 0, so that the
strategies alone withstand, or not.

{_table(results)}
![Test accuracy by round](hostile.png)
"""
    (output / "hostile.md").write_text(text, encoding="utf-8")
    lines, repeats = {}, {}
    for name, seeds in _by_name(results).items():
        curves = [list(enumerate(r["accuracies"], 1)) for r in seeds if r["accuracies"]]
        if curves:
            lines[name], *repeats[name] = curves
    panels = [
        Panel(title="2 of 10 clients are hostile", lines=lines, repeats=repeats),
        Panel(title="the same, from 0.9", lines=lines, repeats=repeats, lowest=0.9),
    ]
    plot(output / "hostile.png", panels)


def _table(results: Sequence[Result]) -> str:
    head = ("strategy", "seeds", "rounds", "final accuracy", "best accuracy", "note")
    rows = []
    for name, seeds in _by_name(results).items():
        evaluated = [result["accuracies"] for result in seeds if result["accuracies"]]
        failed = sum(result["failure"] is not None for result in seeds)
        rows.append(
            (
                name,
                ", ".join(str(result["seed"]) for result in seeds),
                _spread([len(result["accuracies"]) for result in seeds], "g"),
                _spread([accuracies[-1] for accuracies in evaluated], ".4f"),
                _spread([max(accuracies) for accuracies in evaluated], ".4f"),
                f"{failed} of {len(seeds)} runs failed" if failed else "",
            )
        )
    return markdown_table(head, rows)


def _by_name(results: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result["name"], []).append(result)
    return found


def _spread(values: Sequence[float], form: str) -> str | None:
    """Return the median and, where they differ, the range; None of no values."""
    if not values:
        return None
    low, high = min(values), max(values)
    spread = f" ({low:{form}}–{high:{form}})" if low < high else ""
    return f"{median(values):{form}}{spread}"
