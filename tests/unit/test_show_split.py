"""A division is shown as it would be made: in a table, as JSON, and in a picture."""

import json
import re
import sys
from dataclasses import asdict

import pytest

from common.errors import DataError, InputError
from scripts.cli import run_app
from scripts.division import parts_of_run
from scripts.division_picture import draw
from scripts.show_split import app
from server.options import SplitOptions


@pytest.fixture
def show(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(task, *flags):
        argv = ["show_split", "--task", f"tests.tasks:{task}", *map(str, flags)]
        monkeypatch.setattr(sys, "argv", argv)
        return run_app(app)

    return run


def test_the_table_adds_up_to_all_examples_and_the_picture_is_there(show, tmp_path, capsys):
    assert show("Tiny", "--num-partitions", 3, "--validation-fraction", 0.25) == 0
    title, _, head, *rows, _, picture = capsys.readouterr().out.splitlines()
    assert title.startswith("tests.tasks:Tiny, dirichlet: 3 partitions of ")
    assert head.split() == ["partition", "examples", "training", "validation", "0", "1", "2"]
    numbers = [[int(cell.replace("·", "0")) for cell in row.split()] for row in rows]
    assert [row[0] for row in numbers] == [0, 1, 2]
    assert sum(row[1] for row in numbers) == 200
    for _, examples, training, validation, *classes in numbers:
        assert examples == training + validation == sum(classes)
        assert validation == examples // 4
    assert picture == "Picture: split.png"
    assert (tmp_path / "split.png").read_bytes().startswith(b"\x89PNG")


def test_many_partitions_are_a_line_each_in_json_and_a_few_in_the_table(show, tmp_path, capsys):
    flags = ("--num-partitions", 40, "--partitioner", "quantity", "--alpha", 2)
    assert show("Tiny", *flags, "--json", "--output", "mine.png") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["partition"] for row in rows] == list(range(40))
    assert sum(sum(row["classes"]) for row in rows) == 200
    assert (tmp_path / "mine.png").exists()
    assert show("Tiny", *flags) == 0
    table = capsys.readouterr().out.splitlines()[4:9]
    sizes = sorted((row["examples"] for row in rows), reverse=True)
    assert [int(line.split()[1]) for line in table] == [sizes[i] for i in (0, 9, 19, 29, 39)]


def test_a_natural_split_names_the_owners_and_says_what_is_left_out(show, capsys):
    assert show("Owned", "--partitioner", "natural", "--num-partitions", 2) == 0
    title, _, _, *rows, _, _ = capsys.readouterr().out.splitlines()
    assert title.endswith("; 50 of 200 left out")
    assert [row.split()[:3] for row in rows] == [["0", "(ann)", "100"], ["1", "(bob)", "50"]]


def test_examples_without_a_class_are_shown_by_their_number_alone(show, capsys):
    assert show("Pairs", "--partitioner", "iid") == 0
    output = capsys.readouterr().out
    assert "5 partitions of 40 examples\n" in output
    assert "validation\n" in output


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--output", "nowhere/split.png"), "error: --output: can't write nowhere/split.png: "),
        (("--output", "split.doc"), "error: --output: can't write split.doc: "),
        (("--partitioner", "natural"), "error: --partitioner natural: task Tiny does not say"),
        (("--num-partitions", "0"), "error: Invalid value"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(show, capsys, flags, said):
    assert show("Tiny", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1


def options(**changes):
    split = asdict(SplitOptions(partitioner="natural", num_partitions=3))
    return {"task": "tests.tasks:Owned", "data_dir": "nowhere", **split, **changes}


def test_a_runs_division_follows_from_its_options():
    divided = parts_of_run(options(), "tests.tasks:Owned")
    assert [part.name for part in divided.parts] == ["0 (ann)", "1 (bob)", "2 (cem)"]
    assert [part.training for part in divided.parts] == [90, 45, 45]
    assert divided.counts.sum(1).tolist() == divided.sizes.tolist() == [100, 50, 50]
    assert divided.summary() == "3 partitions of 50 to 100 (median 50) examples and 3 classes"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"partitioner": "none"}, DataError, "each client trains on data of its own"),
        ({"task": "mnist"}, DataError, "the data of mnist is not in nowhere"),
        ({"task": "tests.tasks:Unread"}, DataError, "FileNotFoundError"),
        ({"num_partitions": "three"}, DataError, "TypeError"),
        ({"partitioner": "by-moon"}, InputError, "config.json: an option is .* damaged"),
        ({"data_dir": None}, InputError, "config.json: an option is .* damaged"),
    ],
)
def test_a_division_that_cannot_be_made_here_is_an_error_and_leaves_nothing(
    tmp_path, monkeypatch, changes, error, said
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        parts_of_run(options(**changes), changes.get("task", "tests.tasks:Owned"))
    assert not list(tmp_path.iterdir())


def test_a_task_that_fails_at_its_data_is_one_line_with_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["show_split", "--task", "tests.tasks:Unread"])
    assert run_app(app) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --task: the data of tests.tasks:Unread can't be read: FileNot")
    assert re.search(r"tests/tasks\.py, line \d+\)$", line)


def test_the_names_of_owners_and_classes_are_text_and_no_formula(tmp_path):
    divided = parts_of_run(options(), "tests.tasks:Owned")
    names = [f"${part.name} $\\frac{{" for part in divided.parts]
    picture = draw(names, divided.sizes, divided.counts, names[0], [*"$$a"])
    picture.savefig(tmp_path / "split.svg")
    assert (tmp_path / "split.svg").exists()
