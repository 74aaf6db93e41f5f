"""`./scripts/reproduce writers`: the model as MNIST's 539 writers see it, and fine-tuned for each.

A client is a writer, by QMNIST's numbers (Yadav and Bottou 2019, arXiv 1905.10498), who trains on
four fifths of some hundred digits and evaluates on the rest. At the end all of them evaluate.
"""

from collections.abc import Sequence
from pathlib import Path

from scripts.reproduction.running import train
from scripts.results import Panel, markdown_table, plot
from server.storage.run_files import Line

_EPOCHS = 5
# Column of the metrics by what the table calls it.
_SIDES = {
    "global model": "client_accuracy",
    f"after {_EPOCHS} epochs at each client": "fine_tuned_accuracy",
}


def run(
    data_dir: Path,
    output: Path,
    rounds: int = 100,
    task: str = "mnist",
    partitions: int = 539,
    fraction: float = 0.1,
) -> None:
    """Train, or go on where the output folder stands, and write table and picture."""
    output.mkdir(parents=True, exist_ok=True)
    given = [
        *("--task", task, "--model", "mlp", "--rounds", rounds, "--data-dir", data_dir),
        *("--partitioner", "natural", "--num-partitions", partitions, "--min-clients", partitions),
        *("--fraction", fraction, "--local-epochs", 1, "--batch-size", 10, "--lr", 0.1),
        *("--validation-fraction", 0.2, "--client-evaluate-every", max(1, rounds // 4)),
        *("--evaluation-clients", "all", "--fine-tune-epochs", _EPOCHS),
        *("--keep-rounds", 1, "--report-deadline", 3600),
    ]
    rows = [row for row in train("writers", output / "run", given) if row["client_accuracy"]]
    text = f"""# Handwritten digits, a client a writer

{task}, the 2NN, {partitions} writers, a tenth of them in a round, one local epoch over batches of
10, learning rate 0.1. Each client keeps a fifth of its digits to evaluate on; the 10th percentile
is that of the clients. Fine-tuning is thrown away after it was evaluated. One seed, 0.

{_table(rows)}
![Accuracy by round](writers.png)
"""
    (output / "writers.md").write_text(text, encoding="utf-8")
    lines = {}
    for name, column in _SIDES.items():
        lines[f"mean, {name}"] = [(row["round"], _mean(row, column)) for row in rows]
        lines[f"10th percentile, {name}"] = [(row["round"], row[f"{column}_p10"]) for row in rows]
    panel = Panel(title="As the writers see it", lines=lines, y_label="accuracy at the clients")
    plot(output / "writers.png", [panel])
    print("\n" + _table(rows))
    print(f"Table:   {output / 'writers.md'}\nPicture: {output / 'writers.png'}")


def _mean(row: Line, column: str) -> float:
    """Return the mean over the clients, by examples."""
    means = {**row["client_metrics"], **row}
    return float(means[column])


def _table(rows: Sequence[Line]) -> str:
    head = ("round", "model", "mean", "minimum", "10th percentile", "median", "maximum")
    found = []
    for row in rows:
        for name, column in _SIDES.items():
            spread = [row[f"{column}_{part}"] for part in ("min", "p10", "median", "max")]
            cells = [f"{value:.4f}" for value in (_mean(row, column), *spread)]
            found.append((row["round"], name, *cells))
    return markdown_table(head, found)
