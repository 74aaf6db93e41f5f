"""What runs an algorithm knows none by its name, and adding one touches two files."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.algorithms import BUILT_IN

ROOT = Path(__file__).parents[3]
PLACES = (
    *("server/run", "server/rpc", "server/storage", "server/aggregation"),
    *("client/runner.py", "client/connection.py", "client/promises.py", "client/trainer.py"),
)
# A median is a statistic, too: as a strategy it stands in quotes, unless a column is called so, or
# is a class.
NAMES = {name: rf"(?i)\b{name.replace('-', '[-_ ]?')}\b" for name in BUILT_IN} | {
    "median": r"[\"']median[\"'](?!: \(50|\),$)|\bMedian\b|algorithms\.median",
    "krum": "(?i)krum",
    "SCAFFOLD's payload": r"(?i)control.?variate|\bcontrol\b|\bscaffold",
}


@pytest.mark.parametrize("name", NAMES)
def test_an_algorithms_name_is_nowhere_in_what_runs_it(name):
    files = [file for place in PLACES for file in [ROOT / place, *(ROOT / place).rglob("*.py")]]
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in files
        if file.is_file()
        for line in file.read_text().splitlines()
        if re.search(NAMES[name], line)
    ]
    assert found == []


MODULE = '''"""The smallest step of a cohort."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from common.algorithms import Algorithm
from common.errors import InputError
from common.option_types import Share


class Timid(Algorithm):
    """A part of the mean."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Algorithm.Options):
        """Its options."""

        caution: Annotated[Share, Parameter(help="How much of the mean is left out.")] = 0.5

    def check(self):
        super().check()
        if self.options.caution == 1:
            raise InputError("--caution: 1 leaves nothing; use less")

    def combine(self, updates, plan):
        return super().combine(updates, plan) * (1 - self.options.caution)
'''


def test_adding_a_built_in_strategy_touches_two_files(tmp_path):
    for folder in ("client", "common", "protos", "server"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.py")}

    (tmp_path / "common/algorithms/timid.py").write_text(MODULE)
    table = tmp_path / "common/algorithms/registry.py"
    line = '    "median": "common.algorithms.median:Median",\n'
    new = '    "timid": "common.algorithms.timid:Timid",\n'
    text = table.read_text()
    assert line in text
    table.write_text(text.replace(line, new + line))

    def server(*flags):
        return subprocess.run(
            [sys.executable, "-m", "server", *flags],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    shown = server("--help").stdout
    assert "--caution FLOAT" in shown
    assert "How much of the mean is left out." in shown
    for flags, message in (
        (("--caution", "0.5"), "--caution is not an option of --strategy fedavg; it applies to"),
        (("--strategy", "timid", "--caution", "2"), "--caution"),
        (("--strategy", "timid", "--caution", "1"), "--caution: 1 leaves nothing; use less"),
    ):
        refused = server("--num-partitions", "2", *flags)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr
    after = {path: path.read_bytes() for path in tmp_path.rglob("*.py")}
    touched = {path.name for path in after if after[path] != before.get(path)}
    assert touched == {"timid.py", "registry.py"}
