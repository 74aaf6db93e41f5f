"""What ./scripts/reproduce trains, keeps and writes; the trainings themselves are replaced."""

import os
from pathlib import Path

import pytest
import torch

from common.errors import InputError, RunFailed
from common.tasks import Examples
from common.training import TrainConfig
from scripts.reproduction import hostile, tables
from scripts.reproduction.cells import CELLS, GRID
from scripts.reproduction.tasks import HOSTILE, AttackedMnist
from scripts.results import append_result, markdown_table, read_results
from server.configuration import parse


def _rows(*accuracies):
    return [
        {"round": number, "global_accuracy": accuracy, "duration_seconds": 2.0, "refused": 0}
        for number, accuracy in enumerate(accuracies, 1)
    ]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_cells_flags_are_the_servers(cell):
    options = parse(list(map(str, cell.flags(3, cell.lr))))
    assert (options.run.seed, options.split.num_partitions) == (3, 100)
    assert options.split.validation_fraction == 0
    assert options.evaluation.target_accuracy == cell.target
    assert cell.lr in GRID


def test_a_cell_that_does_not_exist_is_wrong_input():
    with pytest.raises(InputError, match="no cell '3nn'; use some of 2nn-iid, "):
        tables.choose(["3nn"])
    assert [cell.name for cell in tables.choose(["cnn-e1"])] == ["cnn-e1"]
    with pytest.raises(InputError, match="--lr"):
        tables.rates(0.1, grid=True)


def test_the_table_says_what_was_reached_and_what_was_missed(tmp_path, monkeypatch):
    reached, over = _rows(0.5, 0.971, 0.96), _rows(*[0.5] * 60, 0.97)
    later, missed, far = _rows(*[0.5] * 3, 0.98), _rows(0.5, 0.9), _rows(0.5, 0.97)
    far[0]["refused"] = 1
    outcomes = [
        *(reached, over, later),
        *(over, reached, over),
        *(reached, missed, later),
        *(reached, later, far),
    ]
    monkeypatch.setattr(tables, "train", lambda *_: outcomes.pop(0))
    cells = tables.choose(["2nn-iid"])
    for lr in (0.05, 0.1, 0.15, 0.2):
        tables.run(cells, Path("data"), tmp_path, rates=[lr])
    outcomes = [later]
    tables.run(cells, Path("data"), tmp_path, seeds=1, rates=[0.3])
    lines = (tmp_path / "tables.md").read_text().splitlines()
    table = [line.split("|") for line in lines if line.startswith("| 2nn-iid")]
    assert [row[-3].strip() for row in table] == [
        "4 (2–61)",
        "61 (2–61), over the aim",
        "seed 1 missed: 0.9000 at best in 2",
        "no result: seed 2 diverges",
        "4",
    ]
    assert [row[-5].strip() for row in table] == ["87 (table 1)"] * 5
    assert [row[-6].strip() for row in table] == ["0, 1, 2"] * 4 + ["0 only"]
    assert [row[-2].strip() for row in table] == ["8", "122", "6", "6", "8"]
    assert (tmp_path / "tables.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_that_diverges_is_an_outcome(tmp_path, monkeypatch):
    def train(*_):
        raise RunFailed("round 1 was abandoned 3 times")

    monkeypatch.setattr(tables, "train", train)
    tables.run(tables.choose(["2nn-iid"]), Path("data"), tmp_path, seeds=2)
    assert "no result: seed 0, 1 diverges" in (tmp_path / "tables.md").read_text()
    results = read_results(tmp_path / "results.jsonl")
    assert [result["failure"] for result in results] == ["round 1 was abandoned 3 times"] * 2


def test_what_is_done_is_not_done_again_and_the_rest_is(tmp_path, monkeypatch):
    trained = []

    def train(title, *_):
        trained.append(title)
        if title == "cnn-e1-seed1-lr0.2":
            raise RunFailed("broken")
        return _rows(0.5)

    monkeypatch.setattr(tables, "train", train)
    monkeypatch.setattr(tables, "_write", lambda *_: None)
    cells = tables.choose(["cnn-e1"])
    with pytest.raises(RunFailed):
        tables.run(cells, Path("data"), tmp_path, seeds=2)
    with pytest.raises(RunFailed):
        tables.run(cells, Path("data"), tmp_path, seeds=2)
    assert trained == ["cnn-e1-seed0-lr0.2"] + ["cnn-e1-seed1-lr0.2"] * 2
    assert [result["seed"] for result in read_results(tmp_path / "results.jsonl")] == [0]


def test_results_are_lines_that_stay(tmp_path):
    path = tmp_path / "results.jsonl"
    assert read_results(path) == []
    append_result(path, {"a": 1})
    append_result(path, {"a": None})
    assert read_results(path) == [{"a": 1}, {"a": None}]


def test_a_table_is_as_wide_as_its_cells():
    expected = "| a   | b |\n| --- | - |\n| 100 | – |\n"
    assert markdown_table(("a", "b"), [(100, None)]) == expected


def test_an_attack_turns_the_update_around_and_makes_it_ten_times_as_long(monkeypatch):
    examples = Examples(torch.randn(20, 1, 28, 28), torch.arange(20) % 10)
    torch.manual_seed(0)
    base = AttackedMnist.models["mlp"]().state_dict()

    def update(hostile_value):
        monkeypatch.setitem(os.environ, HOSTILE, hostile_value)
        model = AttackedMnist.models["mlp"]()
        model.load_state_dict(base)
        AttackedMnist().train(model, examples, TrainConfig(), 0, lambda *_: None)
        return torch.cat([(v - base[k]).flatten() for k, v in model.state_dict().items()])

    torch.testing.assert_close(update("1"), -10 * update(""), rtol=1e-3, atol=1e-5)


def test_a_run_that_an_attack_ended_is_in_the_table(tmp_path, monkeypatch):
    attacked = []

    def train(name, folder, flags, clients, environments):
        attacked.append((name, list(environments)))
        if name.startswith("FedAvg, seed"):
            raise RunFailed("round 4 was abandoned")
        return _rows(0.5, 0.9, 0.82 if name.endswith("1") else 0.8)

    monkeypatch.setattr(hostile, "train", train)
    monkeypatch.setattr(hostile, "plot", lambda *_: None)
    hostile.run(Path("data"), tmp_path)
    assert attacked[:2] == [
        ("FedAvg, no attack, seed 0", []),
        ("FedAvg, seed 0", ["8-9"]),
    ]
    text = (tmp_path / "hostile.md").read_text()
    assert "3 of 3 runs failed" in text
    assert "| median            | 0, 1, 2 | 3      | 0.8000 (0.8000–0.8200) | 0.9000 " in text
