"""The lesson's page: what it says to type exists, and it tells nothing of where it was run."""

import json
import re
import shlex

import pytest

from client.options import ClientOptions
from client.options import SecurityOptions as ClientSecurity
from common.config import parse_options
from scripts.admin import app as admin
from scripts.show_split import app as show_split
from server.configuration import parse
from server.options import ServerOptions
from tests.lesson import LESSON, ROOT, cells_of, solutions

PAGE = json.loads(LESSON.read_text())
TEXT = "\n\n".join(cells_of(PAGE, "markdown"))
COMMANDS = re.findall(
    r"^(?:python -m|\./scripts/).*|(?<=`)\./scripts/[^`]+(?=`)", TEXT, re.MULTILINE
)


def _client(argv):
    parse_options(ClientOptions, "python -m client", "", argv)


def _by(app):
    return lambda argv: app.parse_args(argv, exit_on_error=False, print_error=False)


PARSERS = {
    "python -m server": parse,
    "python -m client": _client,
    "./scripts/quickstart": parse,
    "./scripts/show_split": _by(show_split),
    "./scripts/admin": _by(admin),
}


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_one_that_its_program_takes(command):
    program = next(name for name in PARSERS if command.startswith(name))
    if program.startswith("./"):
        assert (ROOT / program).exists()
    PARSERS[program](shlex.split(command.removeprefix(program), comments=True))


def test_each_flag_in_the_text_is_an_option():
    known = ServerOptions().flat() | vars(ClientOptions()) | vars(ClientSecurity())
    flags = {"--" + name.replace("_", "-") for name in known}
    assert set(re.findall(r"--[a-z][a-z0-9-]+", TEXT)) <= flags


def test_each_file_that_it_links_to_is_there():
    targets = [to for to in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in to]
    links = [to for to in targets if not to.startswith("#")]
    assert links
    assert all((LESSON.parent / link.partition("#")[0]).exists() for link in links)
    headings = re.findall(r"^#+ (.*)", TEXT, re.MULTILINE)
    assert {to[1:] for to in targets if to.startswith("#")} <= set(headings)


def test_the_sections_of_the_readme_that_it_names_are_there():
    headings = re.findall(r"^## (.*)", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = re.findall(r"\[([^]]+)\]\(\.\./\.\./README\.md#([^)]+)\)", " ".join(TEXT.split()))
    assert named
    assert set(named) <= {(head, head.lower().replace(" ", "-")) for head in headings}


def test_each_paper_that_it_cites_is_among_the_sources_and_each_source_is_cited():
    body, sources = TEXT.split("## Sources")
    name = r"([A-Z][A-Za-z]+)"
    cited = re.findall(rf"{name}(?: et al\.| and [A-Z][a-z]+)\s+((?:19|20)\d\d)", body)
    listed = re.findall(rf"^- {name}.*? ((?:19|20)\d\d)", sources, re.MULTILINE)
    assert set(cited) == set(listed)


def test_all_code_compiles():
    codes = cells_of(PAGE, "code") + solutions(PAGE)
    assert len(codes) > 20
    for code in codes:
        compile(code, "a cell", "exec")


def test_it_was_run_from_top_to_bottom_and_shows_its_pictures():
    cells = [cell for cell in PAGE["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 7
    assert sum(output["output_type"] == "stream" for output in outputs) >= 10


def test_it_tells_nothing_of_the_machine_that_it_was_run_on():
    # In a picture's base64 the letters occur by chance.
    text = re.sub(r'"image/png": "[^"]*"', "", LESSON.read_text())
    assert re.findall("/(?:tmp|work|home|root|Users)", text) == []
    assert set(PAGE["metadata"]) == {"kernelspec", "language_info"}
    assert PAGE["metadata"]["kernelspec"]["name"] == "python3"
    assert PAGE["metadata"]["language_info"] == {"name": "python"}
    assert all(set(cell["metadata"]) == set() for cell in PAGE["cells"])


def test_it_is_small():
    assert LESSON.stat().st_size < 1_000_000
