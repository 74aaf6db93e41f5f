"""What a training needs by itself: torch, the model, and its fixed step. No client.

`python -m scripts.benchmarks.bare MODEL` says `ready` and waits for its input to end.
"""

import sys
from pathlib import Path

import torch

from common.training import TrainConfig
from scripts.testbed.tasks import Perturbation

if __name__ == "__main__":
    torch.set_num_threads(1)
    task = Perturbation()
    model = task.models[sys.argv[1]]()
    examples = task.data(Path(), train=True)
    task.train(model, examples, TrainConfig(), 0, lambda _done, _total: None)
    print("ready", flush=True)
    sys.stdin.read()
