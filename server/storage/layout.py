"""Every file name of a run directory, once; what a file holds is said where it is written."""

from pathlib import Path

CONFIG = "config.json"
METRICS = "metrics.jsonl"
TABLE = "metrics.csv"
CLIENTS = "clients.jsonl"
EVALUATIONS = "evaluations.jsonl"
LOG = "server.jsonl"
# While a server works on the run: its process and addresses.
READY = "server.json"
LOCK = ".lock"
OPERATOR_TOKEN = "operator.token"  # noqa: S105 - a file's name
STOP_ORDER = "stop.json"
TRACKING = "tracking.json"
TRACKING_LOCK = ".tracking.lock"
MODELS = "models"
ROUNDS = "rounds"
# Of a round's folder.
RECORD = "record.json"
COHORT = "cohort.json"
UPDATES = "updates"
MODEL = "model"
# Beside the rounds: files to write over, and an attempt that is being deleted.
SPARE = "spare"
ABANDONED = "abandoned"
# Of the published models: the last round's, and the best one's.
LAST, BEST = "global", "best"


def round_folder(run: Path, number: int) -> Path:
    """Return where a round lives."""
    return run / ROUNDS / f"{number:05d}"


def rounds(run: Path) -> list[tuple[int, Path]]:
    """Return the rounds' numbers and folders, ascending."""
    folders = (run / ROUNDS).iterdir() if (run / ROUNDS).exists() else ()
    return sorted((int(folder.name), folder) for folder in folders if folder.name.isdecimal())


def committed(run: Path) -> list[int]:
    """Return the numbers of the committed rounds, ascending."""
    return [number for number, folder in rounds(run) if (folder / RECORD).exists()]


def tensors(folder: Path, name: str) -> Path:
    """Return the file of tensors in a round's folder: its model, or what the strategy keeps."""
    return folder / f"{name}.safetensors"


def model(run: Path, name: str = LAST) -> Path:
    """Return a published model; its metadata is beside it as .json, at the end a copy as .pth."""
    return run / MODELS / f"{name}.safetensors"
