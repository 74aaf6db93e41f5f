"""The processes of a test end with it."""

import pytest

from tests.e2e.harness import Federation


@pytest.fixture
def federation(tmp_path):
    started = Federation(tmp_path)
    yield started
    for process in started.processes:
        process.end()


@pytest.fixture
def another_federation(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    started = Federation(folder)
    yield started
    for process in started.processes:
        process.end()
