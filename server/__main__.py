"""`python -m server`: parse, build, run."""

import os
import signal
import sys
from collections.abc import Sequence

from common.errors import InputError, RunFailed
from server.configuration import parse


def main(argv: Sequence[str]) -> int:
    """Return the exit status: 0 done, 1 the run failed, 2 wrong input, 128 + n after signal n."""
    try:
        options = parse(argv)
        if options is None:
            return 0
        # Imports torch, which --help and wrong flags need not wait for.
        from server.app import serve

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
