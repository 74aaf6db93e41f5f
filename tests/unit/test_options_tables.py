"""server/OPTIONS.md and client/OPTIONS.md are what --help says; UPDATE_TABLES=1 writes them."""

import importlib
import os
from pathlib import Path

import pytest

from common import config

ROOT = Path(__file__).parents[2]
HEAD = """# Options of `python -m {name}`

Each option may also be an environment variable (`FOLKMOOT_{variable}`) or a line of the TOML file
that `--config` names; flags take precedence over variables, and variables over the file. A test
writes this page from `--help`.
"""


def cell(text):
    return text.replace("|", "\\|").strip() or "–"


def table(panel):
    yield f"\n## {panel.title}\n\n| option | default | meaning |\n| --- | --- | --- |\n"
    for entry in panel.entries:
        meaning = str(entry.description.primary_renderable)
        if entry.choices:
            meaning += f" One of {', '.join(entry.choices)}."
        default = "" if entry.default in (None, "None") else str(entry.default)
        names = ", ".join(f"`{name}`" for name in entry.display_labels)
        yield f"| {names} | {cell(default)} | {cell(meaning)} |\n"


@pytest.mark.parametrize(("name", "variable"), [("server", "ROUNDS"), ("client", "SERVER")])
def test_the_page_of_options_is_what_help_says(name, variable, monkeypatch):
    panels = []
    monkeypatch.setattr(config, "_print_group", lambda _, __, panel: panels.append(panel))
    assert importlib.import_module(f"{name}.__main__").main(["--help"]) == 0
    tables = (row for panel in panels if panel.entries for row in table(panel))
    page = HEAD.format(name=name, variable=variable) + "".join(tables)
    path = ROOT / name / "OPTIONS.md"
    if os.environ.get("UPDATE_TABLES"):
        path.write_text(page, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == page
