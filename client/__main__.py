"""`python -m client`: parse, build, run."""

import os
import signal
import sys
from collections.abc import Sequence

from client.options import ClientOptions, client_ids
from common.config import parse_options
from common.errors import InputError, RunFailed

_DESCRIPTION = (
    "Takes part in a training: joins the server, trains its partition when it is selected, "
    "and pushes the update, until the run ends. The data stays here."
)


def main(argv: Sequence[str]) -> int:
    """Return the exit status: 0 done, 1 can't go on, 2 wrong input, 128 + n after signal n."""
    try:
        options = parse_options(ClientOptions, "python -m client", _DESCRIPTION, argv)
        if options is None:
            return 0
        client_ids(options)
        # Imports torch, which --help and wrong flags need not wait for.
        from client.app import serve

        return serve(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    # What gRPC has to say of a port comes as an error with the flag's name.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Until there is something to end in order.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: os._exit(128 + received))
    sys.exit(main(sys.argv[1:]))
