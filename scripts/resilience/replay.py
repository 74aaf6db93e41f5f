"""FedAvg once more over the updates that a chaos run counted, in one process and no framework.

Each round's cohort is as its rows say it; what a client trains follows from the model and a seed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import torch

from client.data import load_partitions
from common.seeds import derive_seed
from common.tensors import digest_bytes, encode
from scripts.resilience.invariants import Rows
from scripts.resilience.tasks import Steps
from server.configuration import data_split
from server.options import SplitOptions
from server.storage import layout


def digests(run: Path, clients: Rows) -> list[str]:
    """Return the BLAKE3 digest of each round's model.

    Args:
        run: the run directory, for its configuration.
        clients: the rows of clients.jsonl.
    """
    torch.set_num_threads(1)
    options = json.loads((run / layout.CONFIG).read_text())["options"]
    split = data_split(SplitOptions(**{f.name: options[f.name] for f in fields(SplitOptions)}))
    task, seed = Steps(), int(options["seed"])
    held = load_partitions(task, run, split, list(range(split.num_partitions)), "cpu")
    torch.manual_seed(derive_seed(seed, "model"))
    model = task.models["linear"]()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    counted = defaultdict[int, list[str]](list)
    for row in clients:
        if row["outcome"] == "accepted":
            counted[row["round"]].append(row["client_id"])
    found = []
    for number in sorted(counted):
        totals = {name: torch.zeros_like(value).double() for name, value in weights.items()}
        examples = 0
        for client in sorted(counted[number]):
            data = held[int(client.rpartition("-")[2])].train
            model.load_state_dict(weights)
            client_seed = derive_seed(seed, "train", number, client)
            task.train(model, data, task.defaults, client_seed, lambda *_: None)
            for name, value in model.state_dict().items():
                totals[name] += (value - weights[name]).double() * len(data.inputs)
            examples += len(data.inputs)
        for name, total in totals.items():
            weights[name] = (weights[name].double() + total / examples).float()
        found.append(digest_bytes(encode(weights)).blake3)
    return found
