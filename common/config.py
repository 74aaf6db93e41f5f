"""Settings from flags, then environment (FOLKMOOT_…), then a TOML file, then saved values.

The options are frozen dataclasses, one a group of `--help`; this file turns them into a
command line with cyclopts and its errors into `InputError`. Knows no option by name but
--config.
"""

import difflib
import os
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from cyclopts import App, Argument, ArgumentCollection, CycloptsError, Group, Token
from cyclopts.config import Env, Toml
from cyclopts.help import HelpPanel

from common import __version__
from common.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_PREFIX = "FOLKMOOT_"
# Where this project's tests find data sets.
_TESTS = "test_data"


def parse_options(
    options: type[T],
    program: str,
    description: str,
    argv: Sequence[str],
    saved: Mapping[str, Any] | None = None,
) -> T | None:
    """Return an instance of the dataclass `options`; None after --help and --version.

    Args:
        options: its fields are groups of options; each option has a default.
        program: what the user types, e.g. "python -m server".
        description: the first paragraph of --help.
        argv: the flags, without the program's name.
        saved: values by option name ("local_epochs") that go before the defaults, for
            whatever flags, environment and file leave open.

    Raises:
        InputError: a flag, variable or line of the file is unknown or has a wrong value.
    """
    app = App(
        name=program,
        help=description,
        usage=f"Usage: {program} [OPTIONS]",
        help_format="plaintext",
        help_formatter=_print_group,
        version=f"folkmoot {__version__}",
        version_flags="--version",
        group_commands=Group("Help", sort_key=99),
        result_action="return_value",
        config=[
            _known_variables,
            Env(_PREFIX, command=False, show=False),
            _config_file,
            _Saved(saved or {}),
        ],
    )

    @app.default
    def build(chosen: options = options()) -> T:  # type: ignore[valid-type]  # noqa: B008
        return chosen

    if any(word in ("--help", "-h") for word in argv):
        # To parse the other flags first would take as long again.
        app.help_print([])
        return None
    try:
        result: T | None = app(
            list(argv), exit_on_error=False, print_error=False, help_on_error=False
        )
    except CycloptsError as error:
        raise InputError(_one_line(str(error))) from error
    return result


def _print_group(console: "Console", options: object, panel: HelpPanel) -> None:  # noqa: ARG001
    """Print a group of options in two columns; cyclopts' frames take as long as all the rest."""
    if not panel.entries:
        return
    labels = [", ".join(entry.display_labels_with_metavar) for entry in panel.entries]
    width = max(len(label) for label in labels)
    lines = [str(panel.title)]
    for label, entry in zip(labels, panel.entries, strict=True):
        text = [str(entry.description.primary_renderable)]
        if entry.choices:
            text.append(f"[{' | '.join(entry.choices)}]")
        if entry.default is not None:
            text.append(f"[default: {entry.default}]")
        first, *more = textwrap.wrap(
            " ".join(text), max(30, console.width - width - 4), break_on_hyphens=False
        )
        lines.append(f"  {label:{width}}  {first}")
        lines.extend(" " * (width + 4) + line for line in more)
    console.print("\n".join(lines), end="\n\n", highlight=False, markup=False, soft_wrap=True)


def _known_variables(_: App, __: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Reject a variable that is no program's option: it would be ignored."""
    own = (name.removeprefix("--") for argument in arguments for name in argument.names)
    known = {name.replace("-", "_").upper() for name in own}
    given = [name.removeprefix(_PREFIX) for name in sorted(os.environ) if name.startswith(_PREFIX)]
    if not known.issuperset(given):
        known |= {name.upper() for name in _others_options()}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            remedy = f"do you mean {_PREFIX}{near[0]}?" if near else "unset it"
            raise InputError(f"{_PREFIX}{name}: unknown option; {remedy}")


def _others_options() -> Iterator[str]:
    """Yield the names of all programs' options: a machine may hold variables for several."""
    yield _TESTS
    for program in ("server", "client"):
        # Where one of them is installed alone, the other's are unknown.
        with suppress(ImportError):
            options = getattr(import_module(f"{program}.options"), f"{program.title()}Options")
            yield from _names(options())


def _names(options: Any) -> Iterator[str]:  # noqa: ANN401 - any dataclass
    for one in fields(options):
        value = getattr(options, one.name)
        yield from _names(value) if is_dataclass(value) else [one.name]


def _config_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Read the file named by --config or FOLKMOOT_CONFIG, if one is named."""
    for token in _argument(arguments, "config").tokens:
        path = Path(token.value)
        try:
            tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"--config: can't read {path}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"--config: {path} is not TOML: {error}") from error
        toml = Toml(path, must_exist=True)
        toml(app, commands, arguments)
        _resolve_paths(arguments, path.parent, toml.source)


def _resolve_paths(arguments: ArgumentCollection, folder: Path, source: str) -> None:
    """Let the relative paths of a file begin at its folder, so that both can be moved."""
    for argument in arguments:
        if Path not in (argument.hint, *get_args(argument.hint)):
            continue
        for index, token in enumerate(argument.tokens):
            if token.source == source:
                value = str(folder / token.value)
                argument.tokens[index] = Token(keyword=token.keyword, value=value, source=source)


class _Saved:
    """The lowest layer of settings: the values of an earlier run."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __call__(self, _: App, __: tuple[str, ...], arguments: ArgumentCollection) -> None:
        for name, value in self._values.items():
            argument = _argument(arguments, name)
            if value is not None and not argument.tokens:
                argument.append(Token(keyword=argument.name, value=str(value)))


def _argument(arguments: ArgumentCollection, option: str) -> Argument:
    flag = "--" + option.replace("_", "-")
    for argument in arguments:
        if flag in argument.names:
            return argument
    raise InputError(f"{flag}: the saved configuration holds this unknown option")


def _one_line(message: str) -> str:
    return " ".join(message.split())
