"""`folkmoot TOOL` and ./scripts/TOOL are the same tools, and the package has all of them."""

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from common import commands
from common.commands import command, install
from scripts import __main__ as folkmoot
from tests.unit.test_shells import AT_HOME, SHELLS

ROOT = Path(__file__).parents[2]


def call(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "scripts", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_each_tool_has_a_script_and_each_script_is_a_tool():
    assert {*folkmoot.TOOLS} == {*SHELLS} - AT_HOME


def test_the_readme_has_a_line_for_each_tool():
    readme = (ROOT / "scripts" / "README.md").read_text()
    assert {*re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE)} == {*folkmoot.TOOLS}


@pytest.mark.parametrize("tool", folkmoot.TOOLS)
def test_each_tools_module_can_be_run(tool):
    module = folkmoot.TOOLS[tool][0]
    found = find_spec(module)
    if found.submodule_search_locations:
        found = find_spec(f"{module}.__main__")
    assert 'if __name__ == "__main__":' in Path(found.origin).read_text()


def test_the_help_names_each_tool_on_a_line():
    status, out, err = call("--help")
    assert (status, err) == (0, "")
    assert re.findall(r"^  (\w+)  ", out, re.MULTILINE) == [*folkmoot.TOOLS]
    assert max(map(len, out.splitlines())) <= 80


def test_a_tool_gets_its_own_arguments():
    status, out, err = call("make_certs", "new", "--help")
    assert (status, err) == (0, "")
    assert "Usage: ./scripts/make_certs new --host" in out
    status, out, err = call("report")
    assert (status, out, err) == (2, "", "error: RUN is missing; see --help\n")


@pytest.mark.parametrize(
    ("tool", "hint"), [("reprot", "did you mean report?"), ("?", "folkmoot --help lists the tools")]
)
def test_an_unknown_tool_is_one_line(tool, hint):
    assert call(tool) == (2, "", f"error: unknown tool '{tool}'; {hint}\n")


def test_the_packages_of_the_wheel_are_those_of_the_tree():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = ("protos", "server", "client", "common", "scripts")
    found = [file.parent for folder in folders for file in (ROOT / folder).rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(path.relative_to(ROOT).parts) for path in found)


def test_without_a_clone_the_tools_are_those_of_the_package(monkeypatch, tmp_path):
    assert command("admin") == "./scripts/admin"
    assert install("onnx") == "./scripts/install onnx"
    monkeypatch.chdir(tmp_path)
    assert command("admin") == str(ROOT / "scripts" / "admin")
    monkeypatch.setattr(commands, "_SCRIPTS", tmp_path / "scripts")
    assert command("admin") == "folkmoot admin"
    assert install("onnx") == "python -m pip install 'folkmoot[onnx]'"
