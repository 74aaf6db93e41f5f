"""Run directories as the server writes them, without a training."""

import json
import math
from dataclasses import fields

from server.storage.columns import Row
from server.storage.metrics import Sinks, by_class


def begin(folder, rounds=5, **options):
    """Make a run directory with nothing but its configuration."""
    folder.mkdir(parents=True)
    given = {"task": "digits", "model": "cnn", "strategy": "fedavg", "partitioner": "none"}
    config = {
        "run_id": folder.name,
        "options": {"rounds": rounds, **given, **options},
        "versions": {"folkmoot": "0"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def row(number, clients=3, **changes):
    """Return a round's row; its accuracy tells the round."""
    values = dict.fromkeys(field.name for field in fields(Row))
    accuracy = round(1 - 1 / (number + 1.1), 4)
    values |= {
        "round": number,
        "attempt": 1,
        "global_accuracy": accuracy,
        "global_loss": 2 / number,
        "client_accuracy": accuracy / 2,
        "client_accuracy_min": accuracy / 4,
        "client_accuracy_p10": accuracy / 3,
        "client_accuracy_median": accuracy / 1.5,
        "client_accuracy_max": accuracy,
        "client_loss": 3 / number,
        "client_loss_min": 2 / number,
        "client_loss_p10": 2.2 / number,
        "client_loss_median": 2.8 / number,
        "client_loss_max": 4 / number,
        "train_loss": 2.5 / number,
        "num_clients": clients,
        "cohort_size": clients,
        "report_goal": clients,
        "accepted": clients - 2,
        "dropped": 1,
        "refused": 1,
        "num_examples": 100 * clients,
        "bytes_down": 1500 * clients,
        "bytes_up": 1000 * clients,
        "bytes_resent": 0,
        "duration_seconds": 2.0,
        "collect_seconds": 1.5,
        "aggregate_seconds": 0.2,
        "evaluate_seconds": 0.3,
        "commit_seconds": 0.1,
        "model_blake3": "0" * 64,
        "global_metrics": {},
        "client_metrics": {},
    }
    return Row(**(values | changes))


def client_rows(number, clients=3):
    """Return the rows of a round's clients: the first was refused, the second dropped out."""
    outcomes = ["refused", "dropped"] + ["accepted"] * (clients - 2)
    return [
        {
            "round": number,
            "client_id": f"client-{place}",
            "outcome": outcome,
            "num_examples": 100 + place if outcome == "accepted" else None,
            "share": 1 / (clients - 2) if outcome == "accepted" else None,
            "train_loss": math.exp(-number / 9) + place if outcome == "accepted" else None,
            "validation_examples": 10,
            "validation_loss": 2.0,
            "validation_accuracy": 0.5,
            "fine_tuned_loss": None,
            "fine_tuned_accuracy": None,
            "seconds": 0.5,
            "bytes_down": 1500,
            "bytes_up": 1000,
        }
        for place, outcome in enumerate(outcomes)
    ]


def confusion(number, classes=10):
    """Return a matrix whose diagonal grows with the rounds."""
    return [[number if i == j else 1 for j in range(classes)] for i in range(classes)]


def commit(folder, number, clients=3, **changes):
    """Append a round to a run directory, as the server does."""
    evaluation = by_class(number, confusion(number))
    Sinks(folder).append(row(number, clients, **changes), client_rows(number, clients), evaluation)
