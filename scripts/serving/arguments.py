"""Command lines by the standard library alone, for what runs where little is installed."""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from typing import NoReturn

from common.errors import InputError


class Arguments(ArgumentParser):
    """A parser whose errors are those of all of this project's commands."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(
            program, description=description, formatter_class=ArgumentDefaultsHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        """Raise the error.

        Raises:
            InputError: always.
        """
        raise InputError(message)
