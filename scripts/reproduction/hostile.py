"""`./scripts/reproduce hostile`: two of ten clients attack, and strategies withstand or not.

The hostile clients are real processes that train as all do, and push their update with the
wrong sign and ten times as long. MNIST, the 2NN, IID.
"""

from collections.abc import Sequence
from pathlib import Path

from common.errors import RunFailed
from scripts.reproduction.results import (
    Panel,
    Result,
    append_result,
    markdown_table,
    plot,
    read_results,
)
from scripts.reproduction.running import train
from scripts.reproduction.tasks import HOSTILE
from server.run_files import Lines

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
    seed: int = 0,
    task: str = _TASK,
    model: str = "mlp",
) -> None:
    """Train what the output folder lacks, and write table and picture after each training."""
    output.mkdir(parents=True, exist_ok=True)
    lines = output / "results.jsonl"
    for name, (strategy, attacked) in _TRIALS.items():
        if name not in [result["name"] for result in read_results(lines)]:
            folder = output / "runs" / name.lower().replace(" ", "-").replace(",", "")
            flags = [*_flags(task, model, rounds, seed, data_dir), *strategy]
            environments = {_ATTACKERS: {HOSTILE: "1"}} if attacked else {}
            failure = None
            try:
                rows = train(name, folder, flags, (*_HONEST, _ATTACKERS), environments)
            except RunFailed as error:
                # A model that an attack drove to infinity is a result, too; a full disk is none.
                if "was abandoned" not in str(error):
                    raise
                rows, failure = Lines(folder / "metrics.jsonl").all(), str(error)
            accuracies = [row["global_accuracy"] for row in rows]
            append_result(lines, {"name": name, "failure": failure, "accuracies": accuracies})
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

{_table(results)}
![Test accuracy by round](hostile.png)
"""
    (output / "hostile.md").write_text(text, encoding="utf-8")
    lines = {
        result["name"]: list(enumerate(result["accuracies"], 1))
        for result in results
        if result["accuracies"]
    }
    panels = [
        Panel(title="2 of 10 clients are hostile", lines=lines),
        Panel(title="the same, from 0.9", lines=lines, lowest=0.9),
    ]
    plot(output / "hostile.png", panels)


def _table(results: Sequence[Result]) -> str:
    head = ("strategy", "rounds", "final accuracy", "best accuracy", "note")
    rows = []
    for result in results:
        accuracies = result["accuracies"]
        ends = (accuracies[-1], max(accuracies)) if accuracies else ()
        figures = [f"{accuracy:.4f}" for accuracy in ends]
        note = (result["failure"] or "").partition(";")[0]
        rows.append((result["name"], len(accuracies), *(figures or (None, None)), note))
    return markdown_table(head, rows)
