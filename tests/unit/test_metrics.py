"""Rows of metrics, and the files that hold them."""

import csv
import json
import math
from dataclasses import fields, replace

import pytest

from server.storage.columns import Row
from server.storage.metrics import Sinks, by_class, finite_only, spread, weighted_means

FILES = ("metrics.jsonl", "metrics.csv", "clients.jsonl", "evaluations.jsonl")
ROW = Row(
    round=1,
    attempt=2,
    global_accuracy=None,
    global_loss=0.5,
    client_accuracy=0.25,
    client_loss=0.75,
    client_accuracy_min=0.0,
    client_accuracy_p10=0.05,
    client_accuracy_median=0.25,
    client_accuracy_max=0.5,
    client_loss_min=0.5,
    client_loss_p10=0.5,
    client_loss_median=0.75,
    client_loss_max=1.0,
    fine_tuned_accuracy_min=None,
    fine_tuned_accuracy_p10=None,
    fine_tuned_accuracy_median=None,
    fine_tuned_accuracy_max=None,
    fine_tuning_gain=None,
    train_loss=1.5,
    num_clients=3,
    cohort_size=3,
    report_goal=3,
    accepted=2,
    dropped=1,
    refused=0,
    num_examples=11,
    bytes_down=300,
    bytes_up=200,
    bytes_resent=0,
    duration_seconds=1.25,
    collect_seconds=1.0,
    aggregate_seconds=0.125,
    evaluate_seconds=None,
    commit_seconds=None,
    model_blake3="f" * 64,
    best_round=1,
    global_metrics={"f1": 0.5},
    client_metrics={"f1": 0.25},
)
ROWS = [replace(ROW, round=number) for number in (1, 2, 3)]


def clients_of(row):
    return [{"round": row.round, "client_id": name, "seconds": None} for name in ("a", "b")]


def evaluation_of(row):
    """Return the line of a round, if the server evaluates every second one."""
    return by_class(row.round, [[3, 1], [0, 2]]) if row.round % 2 else None


def write_run(folder, rows=ROWS):
    folder.mkdir()
    sinks = Sinks(folder)
    for row in rows:
        sinks.append(row, clients_of(row), evaluation_of(row))
    return sinks


def reconciled(folder, rows, counts=None):
    """Bring the files in line with these rows, and return what rows there are."""
    last = rows[-1]
    return Sinks(folder).reconcile(last, clients_of(last), evaluation_of(last), counts or {})


def contents(folder):
    return {name: (folder / name).read_text() for name in FILES if (folder / name).exists()}


def test_a_row_has_the_columns_that_were_promised():
    promised = """round attempt global_accuracy global_loss client_accuracy client_loss train_loss
        num_clients cohort_size dropped refused num_examples bytes_down bytes_up duration_seconds
        collect_seconds aggregate_seconds evaluate_seconds commit_seconds
        model_blake3 best_round"""
    assert set(promised.split()) <= {field.name for field in fields(Row)}


def test_numbers_are_what_is_a_number_and_there():
    numbers = ROW.numbers()
    assert numbers["global_loss"] == 0.5
    assert numbers["accepted"] == 2.0
    assert (numbers["global_f1"], numbers["client_f1"]) == (0.5, 0.25)
    assert not {"global_accuracy", "evaluate_seconds", "model_blake3"} & numbers.keys()


def test_means_are_weighted_by_the_examples_of_the_reports_that_hold_the_metric():
    reports = [(1, {"loss": 4.0}), (10, {"loss": 2.0, "accuracy": 0.5}), (100, {"loss": 1.0})]
    assert weighted_means(reports) == {"accuracy": 0.5, "loss": 124 / 111}


def test_reports_without_examples_do_not_count():
    assert weighted_means([(0, {"loss": 4.0})]) == {}
    assert weighted_means([]) == {}


def test_a_mean_that_is_too_large_for_a_number_is_absent():
    huge = {"loss": 1e308, "accuracy": 0.5}
    assert weighted_means([(1 << 62, huge)]) == {"accuracy": 0.5}
    assert weighted_means([(1 << 62, huge), (1 << 62, {"loss": -1e308})]) == {"accuracy": 0.5}


def test_only_finite_metrics_are_kept():
    metrics = {"a": 1.0, "b": math.nan, "c": math.inf, "d": -math.inf, "e": 0.0}
    assert finite_only(metrics) == {"a": 1.0, "e": 0.0}


def test_each_commit_adds_one_row_to_each_file(tmp_path):
    write_run(tmp_path / "run")
    texts = contents(tmp_path / "run")
    lines = [json.loads(line) for line in texts["metrics.jsonl"].splitlines()]
    assert [Row(**line) for line in lines] == ROWS
    table = list(csv.DictReader(texts["metrics.csv"].splitlines()))
    assert [row["round"] for row in table] == ["1", "2", "3"]
    assert len(texts["clients.jsonl"].splitlines()) == 6


def test_what_is_absent_is_null_in_json_and_empty_in_csv(tmp_path):
    write_run(tmp_path / "run")
    texts = contents(tmp_path / "run")
    assert json.loads(texts["metrics.jsonl"].splitlines()[0])["global_accuracy"] is None
    assert next(csv.DictReader(texts["metrics.csv"].splitlines()))["global_accuracy"] == ""


def test_the_spread_is_that_of_numpys_linear_percentiles():
    found = spread("x", [4.0, 1.0, 3.0, 2.0])
    assert list(found) == ["x_min", "x_p10", "x_median", "x_max"]
    assert list(found.values()) == pytest.approx([1.0, 1.3, 2.5, 4.0])
    assert set(spread("x", [0.5]).values()) == {0.5}
    assert set(spread("x", []).values()) == {None}


def test_a_percentile_that_is_no_number_is_absent():
    found = spread("x", [-1.7e308, 1.7e308])
    assert all(value is None or math.isfinite(value) for value in found.values())


def test_by_class_are_counts_of_the_true_class_and_its_share_of_right_ones():
    assert by_class(7, [[3, 1, 0], [0, 0, 0], [1, 0, 1]]) == {
        "round": 7,
        "class_counts": [4, 0, 2],
        "per_class_accuracy": [0.75, None, 0.5],
        "confusion": [[3, 1, 0], [0, 0, 0], [1, 0, 1]],
    }


def test_only_evaluated_rounds_have_a_line_by_class(tmp_path):
    write_run(tmp_path / "run")
    lines = contents(tmp_path / "run")["evaluations.jsonl"].splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 3]
    write_run(tmp_path / "never", ROWS[1:2])
    assert "evaluations.jsonl" not in contents(tmp_path / "never")
    Sinks(tmp_path / "never").reconcile(ROWS[1], clients_of(ROWS[1]), None, {})
    assert "evaluations.jsonl" not in contents(tmp_path / "never")


def drop_last(text):
    return "".join(text.splitlines(keepends=True)[:-1])


def double_last(text):
    return text + text.splitlines(keepends=True)[-1]


def half_a_line(text):
    return text + text.splitlines()[-1][:20]


def cut_the_last(text):
    return text[:-20]


def lose_the_file(text):
    return None


@pytest.mark.parametrize(
    "crash", [str, drop_last, double_last, half_a_line, cut_the_last, lose_the_file]
)
@pytest.mark.parametrize("name", FILES)
def test_after_a_crash_the_files_are_those_of_an_undisturbed_run(tmp_path, name, crash):
    rows = ROWS[:1] if crash is lose_the_file else ROWS
    write_run(tmp_path / "run", rows)
    expected = contents(tmp_path / "run")
    text = crash(expected[name])
    if text is None:
        (tmp_path / "run" / name).unlink()
    else:
        (tmp_path / "run" / name).write_text(text)
    assert reconciled(tmp_path / "run", rows) == rows
    assert contents(tmp_path / "run") == expected


def test_rows_that_were_not_committed_go(tmp_path):
    write_run(tmp_path / "run")
    write_run(tmp_path / "shorter", ROWS[:2])
    assert reconciled(tmp_path / "run", ROWS[:2]) == ROWS[:2]
    assert contents(tmp_path / "run") == contents(tmp_path / "shorter")


def test_before_the_first_commit_there_are_no_files(tmp_path):
    sinks = write_run(tmp_path / "run")
    assert sinks.reconcile(None, (), None, {}) == []
    assert contents(tmp_path / "run") == {}
    assert Sinks(tmp_path).reconcile(None, (), None, {}) == []


def test_a_reconciled_run_goes_on(tmp_path):
    write_run(tmp_path / "whole")
    write_run(tmp_path / "run", ROWS[:2])
    sinks = Sinks(tmp_path / "run")
    sinks.reconcile(ROWS[1], clients_of(ROWS[1]), evaluation_of(ROWS[1]), {})
    sinks.append(ROWS[2], clients_of(ROWS[2]), evaluation_of(ROWS[2]))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize("line", ["[]", '{"loss": 1}', '{"round": "1"}', "\xff"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "clients.jsonl", "evaluations.jsonl"])
def test_a_line_that_is_no_row_is_left_out_and_said(tmp_path, name, line, capsys):
    write_run(tmp_path / "run")
    expected = contents(tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_text(line + "\n" + path.read_text())
    assert reconciled(tmp_path / "run", ROWS) == ROWS
    assert contents(tmp_path / "run") == expected
    assert "a damaged line of metrics is left out" in "".join(capsys.readouterr())


def test_a_row_of_another_version_is_read_and_kept_as_it_is(tmp_path):
    """What it lacks is None, and what this version does not know stays in the file."""
    write_run(tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    first, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    del first["train_loss"], first["client_metrics"]
    first["of_a_newer_version"] = 1
    path.write_text("".join(json.dumps(row) + "\n" for row in [first, *rest]))
    found = reconciled(tmp_path / "run", ROWS)
    assert found[0] == replace(ROWS[0], train_loss=None, client_metrics={})
    assert json.loads(path.read_text().splitlines()[0]) == first


@pytest.mark.parametrize("name", ["metrics.jsonl", "clients.jsonl", "evaluations.jsonl"])
def test_rows_that_were_lost_are_said_each_time(tmp_path, name, capsys):
    counts = write_run(tmp_path / "run").counts_with([], None)
    reconciled(tmp_path / "run", ROWS, counts)
    assert "are lost" not in "".join(capsys.readouterr())
    (tmp_path / "run" / name).write_text("")
    for _ in range(2):
        reconciled(tmp_path / "run", ROWS, counts)
        said = "".join(capsys.readouterr())
        assert said.count("rows of committed rounds are lost") == 1
        assert name in said


def test_lines_are_counted_on_over_a_restart_with_those_that_were_lost(tmp_path):
    counts = write_run(tmp_path / "run", ROWS[:2]).counts_with([], None)
    assert counts == {"clients.jsonl": 4, "evaluations.jsonl": 1}
    (tmp_path / "run" / "clients.jsonl").write_text("")
    sinks, last = Sinks(tmp_path / "run"), ROWS[1]
    sinks.reconcile(last, clients_of(last), evaluation_of(last), counts)
    found = sinks.counts_with(clients_of(ROWS[2]), evaluation_of(ROWS[2]))
    assert found == {"clients.jsonl": 6, "evaluations.jsonl": 2}


def test_own_metrics_have_columns_from_the_round_that_first_has_them(tmp_path):
    plain = replace(ROW, global_metrics={}, client_metrics={})
    rows = [replace(plain, round=1), replace(ROW, round=2), replace(plain, round=3)]
    write_run(tmp_path / "run", rows)
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["global_f1"] for row in found] == ["", "0.5", ""]
    assert [row["client_f1"] for row in found] == ["", "0.25", ""]
    assert [row["accepted"] for row in found] == ["2", "2", "2"]
    before = contents(tmp_path / "run")
    reconciled(tmp_path / "run", rows)
    assert contents(tmp_path / "run") == before


def test_an_own_metric_does_not_stand_in_for_a_column_nor_make_more_than_there_may_be(tmp_path):
    named = {f"m{number}": 1.0 for number in range(100)}
    write_run(tmp_path / "run", [replace(ROW, client_metrics=named | {"loss_min": 9.0})])
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["client_loss_min"] == "0.5"
    assert sum(name.startswith("client_m") and name[8:].isdecimal() for name in row) == 64
