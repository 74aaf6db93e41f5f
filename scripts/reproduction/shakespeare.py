"""`./scripts/reproduce shakespeare`: the next character, by role, against centralised training.

The character LSTM of McMahan et al. 2017 (arXiv 1602.05629) on the 100 largest speaking roles, five
of them in a round, E=5 and B=10, beside as many of the same examples in one place.
"""

from pathlib import Path

from scripts.reproduction.compare import compare
from server.storage.checkpoints import RunDirectory


def run(
    data_dir: Path,
    output: Path,
    rounds: int = 30,
    task: str = "shakespeare",
    partitions: int = 100,
    lr: float = 2.0,
) -> None:
    """Train, or go on where the output folder stands, and write table and picture.

    Raises:
        RunFailed: a process of the training did.
    """
    folder = output / "run"
    flags = [
        *("--task", task, "--rounds", rounds, "--data-dir", data_dir, "--lr", lr),
        *("--partitioner", "natural", "--num-partitions", partitions, "--min-clients", partitions),
        *("--fraction", 0.05, "--local-epochs", 5, "--batch-size", 10),
        *("--validation-fraction", 0, "--client-evaluate-every", 0, "--evaluate-every", 3),
        *("--keep-rounds", 1, "--report-deadline", 3600, "--run-dir", folder, "--output", output),
    ]
    resume = ["--resume"] if RunDirectory(folder).holds_run() else []
    compare([*map(str, flags), *resume])
