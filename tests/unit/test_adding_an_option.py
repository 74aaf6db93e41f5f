"""An option is declared once, and all that reads options knows it."""

import pytest

from tests.copied import changed, copy_tree, python

# All that a new option takes: its declaration, and where it is used.
ADDED = {
    "server/options.py": {
        "    lease: ": ('    cooldown: NonNegativeFloat = 0.0\n    "Seconds between two rounds."\n')
    },
    "server/run/limits.py": {"    max_clients: int": "    cooldown: float\n"},
}
READERS = """
import pathlib
from common.config import parse_options
from client.options import ClientOptions
from common.errors import InputError
from common.tasks import load_task
from scripts.reporting.facts import collect
from scripts.reporting.wording import setup
from server import configuration
from server.app import open_run
from server.mlflow_reporting.history import History
from server.options import ServerOptions
from server.run.limits import Limits
from server.storage.checkpoints import RunDirectory
from server.storage.run_files import RunFiles

given = configuration.parse(["--cooldown", "0.5", "--run-dir", "run"])
options = configuration.resolve(given, load_task("digits"))
directory = RunDirectory(pathlib.Path("run"))
directory.lock()
open_run(options, directory)
print("used:", options.pick(Limits, max_update_size_bytes=1).cooldown)
print("resumed:", configuration.parse(["--run-dir", "run", "--resume"]).cohort.cooldown)
try:
    configuration.parse(["--run-dir", "run", "--resume", "--cooldown", "1"])
except InputError as error:
    print("changed:", error)
print("mlflow:", History(RunFiles(directory.path)).parameters()["cooldown"])
print("report:", dict(setup(collect(directory.path)))["Clients of a round"])
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = copy_tree(tmp_path_factory.mktemp("copy"), ADDED)
    assert len(changed(folder)) == 2
    return folder


def test_a_new_option_is_used_saved_kept_and_told(copy):
    status, text = python(copy, "-c", READERS)
    assert status == 0, text
    for line in (
        "used: 0.5",
        "resumed: 0.5",
        "changed: --cooldown: the run in run has 0.5, not 1.0",
        "mlflow: 0.5",
        ", cooldown 0.5",
    ):
        assert line in text


def test_help_shows_it_and_no_other_program_takes_its_variable_for_a_mistake(copy):
    status, text = python(copy, "-m", "server", "--help")
    assert (status, "Seconds between two rounds. [default: 0.0]" in text) == (0, True)
    status, text = python(copy, "-m", "client", "--server", "none", FOLKMOOT_COOLDOWN="1")
    assert (status, "--partition" in text) == (2, True)
