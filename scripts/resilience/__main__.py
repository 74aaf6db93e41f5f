"""`./scripts/chaos`: the chaos run, and beside it a command for each other way to break things."""

import os
import signal
import sys
from types import FrameType
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from common.errors import InputError, RunFailed
from common.process import exit_status
from scripts.resilience import chaos

Seed = Annotated[int, Parameter(help="The first seed.", validator=Number(gte=0))]
Seeds = Annotated[
    int, Parameter(help="How many seeds, one after the other.", validator=Number(gte=1))
]
Json = Annotated[bool, Parameter(help="Print JSON, one object a seed.", negative=())]

app = App(
    name="./scripts/chaos",
    help="Trains with real processes while a seed's faults strike them: killed servers and "
    "clients, paused processes, broken connections. The result must be that of an undisturbed "
    "run. A seed takes about a minute.",
    version_flags=(),
    help_format="plaintext",
)


@app.default
def run(*, seed: Seed = 0, seeds: Seeds = 1, json: Json = False) -> None:
    """Run seeds, and judge them."""
    if not chaos.show(chaos.measure(range(seed, seed + seeds)), json):
        raise RunFailed("an invariant did not hold")


def main() -> int:
    """Return the exit status: 0 all invariants held, 1 one did not, 2 wrong input."""
    # Processes that share a machine need one torch thread each.
    os.environ["OMP_NUM_THREADS"] = "1"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    return exit_status(_run)


def _end(number: int, _: FrameType | None) -> None:
    """End by way of the context managers, undisturbed, so that the processes end, too."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def _run() -> int:
    try:
        app(exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise InputError(" ".join(str(error).split())) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
