"""Runs a command line that has several commands, and ends as all of this project's do."""

import sys

from cyclopts import App, CycloptsError, MissingArgumentError

from common.commands import command
from common.errors import InputError
from common.logs import configure_logs
from common.process import exit_status


def run_app(app: App) -> int:
    """Return the exit status: 0 done, 1 failed, 2 wrong input; the last two with their line."""

    def run() -> int:
        try:
            app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value")
        except MissingArgumentError as error:
            argument = error.argument
            if argument is None or argument.tokens or error.keyword:
                raise InputError(" ".join(str(error).split())) from error
            # Of what was not given at all, its own words are those of a flag without its value.
            raise InputError(f"{argument.name} is missing; see --help") from error
        except CycloptsError as error:
            raise InputError(" ".join(str(error).split())) from error
        return 0

    # Beside what is printed, which may go into a pipe.
    configure_logs(readable=True)
    return exit_status(run)


def command_line(tool: str, help: str | None = None) -> App:  # noqa: A002
    """Return a tool's command line; without a help, it has that of its default command."""
    return App(name=command(tool), help=help, version_flags=(), help_format="plaintext")
