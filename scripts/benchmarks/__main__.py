"""`./scripts/bench`: one command a subject; --small ends within half a minute."""

import os
import signal
import sys
from collections.abc import Callable, Iterable
from itertools import chain
from types import ModuleType
from typing import Annotated

from cyclopts import Parameter

from common.process import keep_chunks_allocated
from scripts.benchmarks import aggregate, client, rounds, scale, secure, start
from scripts.benchmarks.measurements import show
from scripts.cli import command_line, run_app

Small = Annotated[bool, Parameter(help="A small form, within 30 seconds.", negative=())]
Json = Annotated[bool, Parameter(help="Print JSON, one object a line.", negative=())]

_SUBJECTS = {
    "round": rounds,
    "aggregate": aggregate,
    "scale": scale,
    "client": client,
    "start": start,
    "tls": secure,
}

app = command_line(
    "bench",
    "Measures Folkmoot, each figure beside its floor: what the bare work costs in the same "
    "run. Without a command, all of them, which takes a quarter of an hour.",
)


def _command(subjects: Iterable[ModuleType]) -> Callable[..., None]:
    def run(*, small: Small = False, json: Json = False) -> None:
        show(chain.from_iterable(subject.measure(small) for subject in subjects), json)

    return run


for name, subject in _SUBJECTS.items():
    app.command(_command([subject]), name=name, help=(subject.__doc__ or "").partition("\n")[0])
app.default(_command(_SUBJECTS.values()))


def main() -> int:
    """Return the exit status: 0 done, 1 a measured process failed, 2 wrong input."""
    # Processes that share a machine need one torch thread each.
    os.environ["OMP_NUM_THREADS"] = "1"
    keep_chunks_allocated()
    for number in (signal.SIGINT, signal.SIGTERM):
        # By way of the context managers, so that the measured processes end, too.
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    return run_app(app)


if __name__ == "__main__":
    sys.exit(main())
