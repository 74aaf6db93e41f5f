"""What Folkmoot's tools are called where this runs: in a clone, or as an installed package."""

import shlex
from pathlib import Path

_SCRIPTS = Path(__file__).parents[1] / "scripts"


def command(tool: str) -> str:
    """Return what runs a tool from where the user stands.

    In a clone's root it is ./scripts/TOOL, elsewhere that file's path; without a clone,
    folkmoot TOOL.
    """
    path, here = _SCRIPTS / tool, Path("scripts", tool)
    if not path.is_file():
        return f"folkmoot {tool}"
    return f"./{here}" if here.is_file() and here.samefile(path) else shlex.quote(str(path))


def install(extra: str) -> str:
    """Return what installs an extra of pyproject.toml."""
    if (_SCRIPTS / "install").is_file():
        return f"{command('install')} {extra}"
    return f"python -m pip install 'folkmoot[{extra}]'"
