"""`python -m server`: parse, build, run."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from common.process import begin_process, exit_status
from server.configuration import parse


def main(argv: Sequence[str]) -> int:
    """Return the exit status: 0 done, 1 the run failed, 2 wrong input, 128 + n after signal n."""
    return exit_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = parse(argv)
    if options is None:
        return 0
    folder = options.run.run_dir or Path()
    # First, so that --resume knows of a run whose server is killed from here on.
    made = not folder.exists()
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Imports torch, which --help and wrong flags need not wait for.
    from server.app import serve

    try:
        return serve(options)
    except BaseException:
        # What did not begin leaves nothing behind; a folder with a run in it stays.
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise


if __name__ == "__main__":
    begin_process()
    sys.exit(main(sys.argv[1:]))
