"""Starts a server and five clients as processes on this machine, and shows how training goes.

Whatever it starts it ends, on every way out. Reads the run directory only; the flags are
the server's.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from common.errors import FolkmootError, InputError, RunFailed
from common.tasks.registry import BUILT_IN
from server.configuration import parse
from server.options import ServerOptions

_CLIENTS = 5
_POLL_SECONDS = 0.1
_END_SECONDS = 5.0
_COLUMNS = {
    "round": "round",
    "accuracy": "global_accuracy",
    "loss": "global_loss",
    "clients' accuracy": "client_accuracy",
    "10th percentile": "client_accuracy_p10",
    "updates": "accepted",
    "seconds": "duration_seconds",
}
_DECIMALS = {"duration_seconds": 1}


def main(argv: Sequence[str]) -> int:
    """Return the server's exit status, or 130 after Ctrl-C."""
    processes: list[subprocess.Popen[bytes]] = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        options = parse(argv)
        if options is None:
            print("\nAll these flags of the server are quickstart's too.")
            return 0
        return _train(options, argv, processes)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FolkmootError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nEnding the processes ...", file=sys.stderr)
        return 130
    finally:
        _end(processes)


def _train(
    options: ServerOptions, argv: Sequence[str], processes: list[subprocess.Popen[bytes]]
) -> int:
    folder = options.run.run_dir or Path()
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    count = min(_CLIENTS, options.split.num_partitions)
    given = [] if "--run-dir" in " ".join(argv) else ["--run-dir", str(folder)]
    # As variables, because flags go before them.
    defaults = {"FOLKMOOT_BIND": "127.0.0.1:0", "FOLKMOOT_MIN_CLIENTS": str(count)}
    before = _rows(folder)
    server = _start(["server", *argv, *given], logs / "server.log", defaults, processes)
    address = _wait_for_address(server, folder, logs / "server.log")
    if address is None:
        print("The run has ended already; a larger --rounds goes on with it.")
        return 0
    print(f"Server on {address}, {count} clients, run directory {folder}")
    task = [] if options.run.task in BUILT_IN else ["--task", options.run.task]
    for number, held in enumerate(_ranges(options.split.num_partitions, count)):
        arguments = ["--partition", held, "--data-dir", str(options.run.data_dir), *task]
        command = ["client", "--server", address, *arguments]
        _start(command, logs / f"client-{number}.log", {}, processes)
    _follow(options, processes, folder, len(before))
    if server.wait() != 0:
        raise RunFailed(_last_words(logs / "server.log"))
    for client in processes[1:]:
        client.wait()
    _report(folder, options)
    return 0


def _ranges(partitions: int, clients: int) -> Iterator[str]:
    """Spread partitions over clients as --partition values: "0-1", "2-3", "4"."""
    start = 0
    for client in range(clients):
        size = partitions // clients + (client < partitions % clients)
        yield str(start) if size == 1 else f"{start}-{start + size - 1}"
        start += size


def _start(
    arguments: Sequence[str],
    log: Path,
    defaults: dict[str, str],
    processes: list[subprocess.Popen[bytes]],
) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=file,
            stderr=file,
            env=defaults | os.environ,
            # So that Ctrl-C reaches only this process, which then ends the others in order.
            start_new_session=True,
        )
    processes.append(process)
    return process


def _wait_for_address(server: subprocess.Popen[bytes], folder: Path, log: Path) -> str | None:
    """Return where the server listens, once it does; None if it ended, well, before that."""
    while True:
        ended = server.poll()
        if ended == 0:
            return None
        if ended is not None:
            error = _last_words(log)
            raise InputError(error) if ended == 2 else RunFailed(error)
        ready = _read_json(folder / "server.json")
        if ready.get("pid") == server.pid:
            return str(ready["address"])
        time.sleep(_POLL_SECONDS)


def _follow(
    options: ServerOptions, processes: list[subprocess.Popen[bytes]], folder: Path, known: int
) -> None:
    """Print each round as it is committed, until the server ends."""
    server, clients = processes[0], processes[1:]
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("0 rounds", total=options.run.rounds)
        while True:
            ended = server.poll() is not None
            rows = _rows(folder)
            for row in rows[known:]:
                console.print(_line(row, options.run.rounds), highlight=False)
            known = max(known, len(rows))
            progress.update(bar, completed=known, description=f"{known} rounds")
            if ended:
                return
            for number, client in enumerate(clients):
                if client.poll() not in (None, 0):
                    log = folder / "logs" / f"client-{number}.log"
                    raise RunFailed(f"client {number}: {_last_words(log)}")
            time.sleep(_POLL_SECONDS)


def _line(row: dict[str, Any], rounds: int) -> str:
    accuracy, loss = row["global_accuracy"], row["global_loss"]
    shown = [f"round {row['round']:>3}/{rounds}"]
    if accuracy is not None:
        shown.append(f"accuracy {accuracy:.4f}")
    if loss is not None:
        shown.append(f"loss {loss:.4f}")
    shown.append(f"{row['accepted']} of {row['cohort_size']} updates")
    shown.append(f"{row['duration_seconds']:.1f} s")
    return "   ".join(shown)


def _report(folder: Path, options: ServerOptions) -> None:
    rows = _rows(folder)
    table = Table(*_COLUMNS, title=f"{options.run.task}, {len(rows)} rounds")
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in _COLUMNS.values()))
    console = Console()
    console.print(table)
    last = rows[-1]
    if last["global_accuracy"] is not None:
        best = next(row for row in rows if row["round"] == last["best_round"])
        print(
            f"Final accuracy on held-out data: {last['global_accuracy']:.4f} "
            f"(best: {best['global_accuracy']:.4f} in round {best['round']})"
        )
    models = folder / "models"
    print(f"Model:   {models / 'global.safetensors'} and {models / 'global.pth'}")
    print(f"Metrics: {folder / 'metrics.jsonl'} and {folder / 'metrics.csv'}")
    print(
        f"Go on:   ./scripts/quickstart --run-dir {folder} --resume "
        f"--rounds {2 * options.run.rounds}"
    )


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.{_DECIMALS.get(name, 4)}f}" if isinstance(value, float) else str(value)


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # Half a line: it is being written.
            break
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _last_words(log: Path) -> str:
    """Return the last `error: ...` line of a log, without its beginning."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"a process ended; {log} tells why"


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    # The second Ctrl-C of someone in a hurry must not leave a process behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    until = time.monotonic() + _END_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
