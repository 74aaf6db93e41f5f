"""`./scripts/chaos`: the chaos run, and beside it a command for each other way to break things."""

import os
import signal
import sys
from types import FrameType
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from common.errors import RunFailed
from common.process import keep_chunks_allocated
from scripts.cli import command_line, run_app
from scripts.resilience import chaos, coverage
from scripts.resilience import fuzz as fuzzing
from scripts.resilience import leak as leaking
from scripts.resilience.schedule import FULL, SMALL

Seed = Annotated[int, Parameter(help="The first seed.", validator=Number(gte=0))]
Seeds = Annotated[
    int, Parameter(help="How many seeds, one after the other.", validator=Number(gte=1))
]
Small = Annotated[
    bool, Parameter(help="One server kill and a few faults, in half a minute.", negative=())
]
Json = Annotated[bool, Parameter(help="Print JSON, one object a line.", negative=())]
Draw = Annotated[int, Parameter(help="Another seed draws other messages.", validator=Number(gte=0))]
Messages = Annotated[int, Parameter(help="After the warm-up.", validator=Number(gte=1))]
Seconds = Annotated[int, Parameter(help="How long it goes on.", validator=Number(gte=2))]
Rounds = Annotated[int, Parameter(help="A tenth of them is the warm-up.", validator=Number(gte=10))]
Every = Annotated[int, Parameter(help="Only every so many-th point.", validator=Number(gte=1))]

app = command_line(
    "chaos",
    "Trains with real processes while a seed's faults strike them: killed servers and "
    "clients, paused processes, broken connections. The result must be that of an undisturbed "
    "run. A seed takes about a minute.",
)


@app.default
def run(*, seed: Seed = 0, seeds: Seeds = 1, small: Small = False, json: Json = False) -> None:
    """Run seeds, and judge them."""
    shape = SMALL if small else FULL
    if not chaos.show(chaos.measure(range(seed, seed + seeds), shape), json):
        raise RunFailed("an invariant did not hold")


@app.command
def kill_points(*, every: Every = 1, json: Json = False) -> None:
    """Kill servers and clients at each of their writes; the next ones must go on as if not."""
    # Imports torch, which the other commands need not wait for.
    from scripts.resilience import kill_points as killing

    killing.run(every, json)


@app.command
def fuzz(*, messages: Messages = 20_000, seed: Draw = 0, json: Json = False) -> None:
    """Send a server malformed calls."""
    fuzzing.run(messages, seed, json)


@app.command
def fuzz_timing(*, seconds: Seconds = 60, seed: Draw = 0, json: Json = False) -> None:
    """Send a server valid calls at the wrong moment, from several sessions at once."""
    # Imports numpy, which the other commands need not wait for.
    from scripts.resilience import timing

    timing.run(seconds, seed, json)


@app.command
def fuzz_parsers(*, seconds: Seconds = 60) -> None:
    """Fuzz the parsers of chunks and tensors, guided by coverage; needs the extra `fuzz`."""
    coverage.run(seconds)


@app.command
def leak(*, rounds: Rounds = 300, json: Json = False) -> None:
    """Let clients come and go for hundreds of rounds, and look whether the server grows."""
    leaking.run(rounds, json)


def main() -> int:
    """Return the exit status: 0 withstood, 1 not, 2 wrong input."""
    # Processes that share a machine need one torch thread each.
    os.environ["OMP_NUM_THREADS"] = "1"
    keep_chunks_allocated()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    return run_app(app)


def _end(number: int, _: FrameType | None) -> None:
    """End by way of the context managers, undisturbed, so that the processes end, too."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
