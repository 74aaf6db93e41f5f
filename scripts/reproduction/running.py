"""One training of an experiment: one client process a core, shown while it runs, resumable.

Knows nothing about what the experiment makes of it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from common.errors import InputError
from scripts.federation import Training, spread
from server.configuration import parse
from server.storage.checkpoints import RunDirectory
from server.storage.run_files import Line, RunFiles


def train(
    title: str,
    folder: Path,
    flags: Sequence[object],
    clients: Sequence[str] | None = None,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Line]:
    """Train in a run directory, or go on where it stands; return the rows of its metrics.

    Args:
        title: before each round on the terminal.
        folder: the run directory.
        flags: the server's, without the run directory's.
        clients: what the client processes hold; one process a core, if not given.
        environments: see `Training`.

    Raises:
        RunFailed: a process did.
        InputError: a flag is wrong, or the folder holds a run with others.
    """
    resume = ["--resume"] if RunDirectory(folder).holds_run() else []
    argv = [*map(str, flags), "--run-dir", str(folder), *resume]
    options = parse(argv)
    if options is None:
        raise InputError("--help is no flag of an experiment")
    clients = clients or spread(options.split.num_partitions, os.cpu_count() or 1)
    target = options.evaluation.target_accuracy
    wanted = f" of {target}" if target else ""
    console, best = Console(), 0.0
    with Training(argv, options, clients, environments) as training:
        for row in training.rows():
            accuracy = row["global_accuracy"] or 0.0
            best = max(best, accuracy)
            console.print(
                f"{title}   round {row['round']:>3}   accuracy {accuracy:.4f}   "
                f"best {best:.4f}{wanted}   {row['duration_seconds']:.1f} s",
                highlight=False,
            )
    return RunFiles(folder).metrics.all()
