"""Small versions of the experiments, as real processes, each interrupted by nothing."""

import gzip
import json
from dataclasses import replace

import pytest

from scripts.reproduction import next_word, shakespeare, tables, writers
from scripts.reproduction.cells import CELLS
from scripts.results import read_results


@pytest.fixture(autouse=True)
def modest(monkeypatch):
    """Let each experiment start one client process."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr("scripts.reproduction.compare._CLIENTS", 1)


def test_a_cell_counts_the_rounds_to_its_target(tmp_path):
    cell = replace(
        CELLS[0], task="tests.tasks:Tiny", model="linear", partitions=4, target=0.6, rounds=9
    )
    tables.run([cell], tmp_path, tmp_path, seeds=1)
    (result,) = read_results(tmp_path / "results.jsonl")
    assert result["accuracies"][-1] >= 0.6 > max(result["accuracies"][:-1], default=0)
    assert f"| {result['rounds']} " in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "tables.png").stat().st_size > 1000


def test_writers_are_seen_before_and_after_fine_tuning(tmp_path):
    writers.run(tmp_path, tmp_path, 2, "tests.tasks:Owned", 3, fraction=1.0)
    text = (tmp_path / "writers.md").read_text()
    assert text.count("| global model") == text.count("| after 5 epochs at each client") == 2
    assert (tmp_path / "writers.png").stat().st_size > 1000


def test_roles_are_compared_with_all_of_them_in_one_place(tmp_path):
    said = {f"ROLE_{number}": {"raw": "to be or not to be.\n" * 40} for number in range(3)}
    (tmp_path / "shakespeare").mkdir()
    data = gzip.compress(json.dumps({"user_data": said}).encode())
    (tmp_path / "shakespeare" / "by_role.json.gz").write_bytes(data)
    shakespeare.run(tmp_path, tmp_path, rounds=3, partitions=3)
    text = (tmp_path / "comparison.md").read_text()
    assert "centralised" in text
    assert (tmp_path / "comparison.png").stat().st_size > 1000


def test_the_next_word_is_measured_beside_unigrams_and_bigrams(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("the value of the key is the value. " * 60)
    next_word.run(tmp_path, tmp_path, rounds=1, flags=["--local-epochs", 1])
    text = (tmp_path / "next_word.md").read_text()
    assert "federated, round 1" in text
    assert "unigram, centralised" in text
    assert (tmp_path / "next_word.png").stat().st_size > 1000
