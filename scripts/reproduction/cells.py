"""The cells of tables 1 and 2 of McMahan et al. 2017 (arXiv 1602.05629) that are run again.

MNIST over 100 clients of 600 examples, batches of 10; a cell's figure is the number of rounds
until the best test accuracy so far reaches the target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

# Of the clients' learning rates; the paper tried more, each a factor of 10^(1/3) or 10^(1/6) apart.
GRID = (0.05, 0.1, 0.15, 0.2, 0.3)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training, again and again with other seeds and learning rates.

    Attributes:
        paper: the paper's rounds, by the table that has them.
        aim: the rounds that it should take here.
        lr: the learning rate of the grid that it is run with, unless asked otherwise.
        rounds: after which it counts as missed.
        seeds: how many, from 0, it is run with; one where a training takes more than ten minutes.
        strategy: the server's flags beyond FedAvg's, each with its value.
    """

    name: str
    model: str
    partitioner: str
    fraction: float
    epochs: int
    target: float
    paper: Mapping[str, int]
    aim: int
    lr: float
    rounds: int
    seeds: int = 3
    strategy: Sequence[tuple[str, object]] = field(default=())
    task: str = "mnist"
    partitions: int = 100
    batch_size: int = 10

    def flags(self, seed: int, lr: float) -> list[object]:
        """Return the server's flags."""
        given = {
            "--task": self.task,
            "--model": self.model,
            "--partitioner": self.partitioner,
            "--num-partitions": self.partitions,
            "--min-clients": self.partitions,
            "--validation-fraction": 0,
            "--client-evaluate-every": 0,
            "--fraction": self.fraction,
            "--local-epochs": self.epochs,
            "--batch-size": self.batch_size,
            "--lr": lr,
            "--seed": seed,
            "--rounds": self.rounds,
            "--target-accuracy": self.target,
            "--keep-rounds": 1,
        }
        return [word for pair in (*given.items(), *self.strategy) for word in pair]

    def label(self, lr: float) -> str:
        """Return how the server averages, and the learning rate."""
        values = [f"{flag.removeprefix('--')} {value}" for flag, value in self.strategy]
        return ", ".join([*(values or ["strategy fedavg"]), f"lr {lr:g}"]).removeprefix("strategy ")


_FEDAVGM = (("--strategy", "fedavgm"), ("--server-momentum", 0.7), ("--server-lr", 0.6))

_2NN = Cell(
    name="2nn-iid",
    model="mlp",
    partitioner="iid",
    fraction=0.1,
    epochs=1,
    target=0.97,
    paper={"table 1": 87},
    aim=60,
    lr=0.1,
    rounds=120,
)
_2NN_NON_IID = replace(
    _2NN,
    name="2nn-non-iid",
    partitioner="shards",
    paper={"table 1": 664},
    aim=300,
    lr=0.1,
    rounds=500,
)
_CNN = replace(
    _2NN,
    name="cnn-e1",
    model="cnn",
    target=0.99,
    paper={"table 2": 34},
    aim=36,
    lr=0.2,
    rounds=60,
    seeds=1,
)
_CNN_E5 = replace(
    _CNN, name="cnn-e5", epochs=5, paper={"table 1": 18, "table 2": 20}, aim=24, lr=0.1, rounds=40
)
CELLS = (
    _2NN,
    replace(_2NN, name="2nn-iid-all", fraction=1.0, paper={"table 1": 70}),
    _2NN_NON_IID,
    replace(
        _2NN_NON_IID,
        name="2nn-non-iid-all",
        fraction=1.0,
        paper={"table 1": 380},
        aim=340,
        lr=0.15,
        seeds=1,
    ),
    _CNN,
    _CNN_E5,
    replace(_2NN_NON_IID, name="2nn-non-iid-best", aim=160, strategy=_FEDAVGM),
    replace(_CNN, name="cnn-e1-best", aim=26, lr=0.1, strategy=_FEDAVGM),
    replace(_CNN_E5, name="cnn-e5-best", aim=18, lr=0.1, strategy=_FEDAVGM),
)
