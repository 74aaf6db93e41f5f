"""`./scripts/chaos`: one command a subject."""

import os
import signal
import sys
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from common.errors import InputError
from common.process import exit_status, keep_chunks_allocated
from scripts.resilience import coverage
from scripts.resilience import fuzz as fuzzing
from scripts.resilience import leak as leaking

Json = Annotated[bool, Parameter(help="Print JSON, one object a line.", negative=())]
Seed = Annotated[int, Parameter(help="Another seed draws other messages.", validator=Number(gte=0))]
Messages = Annotated[int, Parameter(help="After the warm-up.", validator=Number(gte=1))]
Seconds = Annotated[int, Parameter(help="For both together.", validator=Number(gte=2))]
Rounds = Annotated[int, Parameter(help="A tenth of them is the warm-up.", validator=Number(gte=10))]

app = App(
    name="./scripts/chaos",
    help="Does to real processes what should not happen, and says whether they withstand it.",
    version_flags=(),
    help_format="plaintext",
)


@app.command
def fuzz(*, messages: Messages = 20_000, seed: Seed = 0, json: Json = False) -> None:
    """Send a server malformed calls."""
    fuzzing.run(messages, seed, json)


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
        # By way of the context managers, so that the processes end, too.
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    return exit_status(_run)


def _run() -> int:
    try:
        app(exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise InputError(" ".join(str(error).split())) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
