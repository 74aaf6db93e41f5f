"""Prints what Folkmoot needs with an extra of pyproject.toml, out of requirements.lock.

pip installs what it prints, and checks the hashes: it is the file format of pip's --requirement.
Runs before anything is installed, so it imports only Python's own library.
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path


def needed(pyproject: str, lock: str, extra: str = "") -> str:
    """Return the part of a lock file that an extra needs.

    Args:
        pyproject: the text of pyproject.toml.
        lock: the text of requirements.lock: pinned packages in the format of pip's requirements
            files, each with its hashes and with a comment `# via` that names who needs it.
        extra: its name; "" for Folkmoot without one.

    Raises:
        ValueError: pyproject.toml has no such extra, or the lock file lacks a package.
    """
    table = tomllib.loads(pyproject)
    project = table["project"]
    extras = project["optional-dependencies"]
    if extra and extra not in extras:
        raise ValueError(f"unknown extra: {extra} (there are {', '.join(extras)})")
    wanted = set(_names(table["build-system"]["requires"]))
    wanted |= set(_names(project["dependencies"]))
    left = [extra] if extra else []
    while left:
        for requirement in extras[left.pop()]:
            if own := re.fullmatch(rf"{project['name']}\[(.+)\]", requirement):
                left += own[1].split(",")
            else:
                wanted |= set(_names([requirement]))
    blocks = {_name(block): block for block in re.split(r"(?m)^(?=\w)", lock)[1:]}
    if lacking := wanted - blocks.keys():
        raise ValueError(
            f"requirements.lock lacks {', '.join(sorted(lacking))}: run ./scripts/lock"
        )
    while more := {name for name, block in blocks.items() if wanted & _needed_by(block)} - wanted:
        wanted |= more
    return "".join(block for name, block in blocks.items() if name in wanted)


def _names(requirements: Iterable[str]) -> list[str]:
    return [_name(requirement) for requirement in requirements]


def _name(requirement: str) -> str:
    """Return the normalised name that a requirement begins with (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def _needed_by(block: str) -> set[str]:
    _, _, via = block.partition("# via ")
    return set(via.strip().split(", "))


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    texts = [(root / name).read_text() for name in ("pyproject.toml", "requirements.lock")]
    try:
        print(needed(texts[0], texts[1], *sys.argv[1:]), end="")
    except ValueError as error:
        sys.exit(f"error: {error}")
