"""`python -m client`: parse, build, run."""

import sys
from collections.abc import Sequence

from client.options import ClientOptions, check_address, client_ids
from common.config import parse_options
from common.process import begin_process, exit_status

_DESCRIPTION = (
    "Takes part in a training: joins the server, trains its partition when it is selected, "
    "and sends the update, until the run ends. The training data stays on this machine."
)


def main(argv: Sequence[str]) -> int:
    """Return the exit status: 0 done, 1 can't go on, 2 wrong input, 128 + n after signal n."""
    return exit_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = parse_options(ClientOptions, "python -m client", _DESCRIPTION, argv)
    if options is None:
        return 0
    client_ids(options)
    check_address(options.server)
    # Imports torch, which --help and wrong flags need not wait for.
    from client.app import serve

    return serve(options)


if __name__ == "__main__":
    begin_process()
    sys.exit(main(sys.argv[1:]))
