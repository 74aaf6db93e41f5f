"""What the dashboard shows of a run, up to Plotly's figures; tests/e2e has the page itself."""

import io
import json
import math
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
from PIL import ExifTags, Image

from common.errors import InputError, UnnamedTask
from scripts.summary import numbers
from scripts.viewing import figures, maps
from scripts.viewing.messages import plain, said
from scripts.viewing.runs import names_in, open_run
from scripts.viewing.tables import (
    OUTCOMES,
    by_client,
    column,
    confusion_of,
    differing,
    examples_by_client,
    own_metrics,
    own_of_clients,
)
from tests.recorded import begin, client_rows, commit, confusion, row

ACCURACY, LOSS = (partial(figures.measured, measure=measure) for measure in ("accuracy", "loss"))

ROWS = [numbers(asdict(row(number))) for number in (1, 2, 3)]
NAMES = [str(place) for place in range(10)]


def traces(figure):
    return {trace.name: trace for trace in figure.data}


@pytest.mark.parametrize("value", [None, "0.5", True, [1], math.inf, math.nan, 10**400])
def test_what_is_no_finite_number_is_unknown_and_not_zero(value):
    assert np.isnan(column([{"x": value}], "x")).all()
    assert np.isnan(column([{}], "x")).all()


def test_a_map_has_a_cell_for_each_client_and_round_and_sorts_clients_as_people_do():
    lines = [line for number in (1, 2) for line in client_rows(number, 12)]
    found = by_client([*lines, {"round": 1}, {"client_id": "x"}], "train_loss")
    assert found.clients == [f"client-{place}" for place in range(12)]
    assert found.rounds == [1, 2]
    assert np.isnan(found.values[:2]).all()
    assert found.values[11, 1] == pytest.approx(math.exp(-2 / 9) + 11)


def test_outcomes_are_numbered_and_an_unknown_one_is_left_empty():
    lines = [*client_rows(1), {"client_id": "client-9", "round": 1, "outcome": "vanished"}]
    found = by_client(lines, "outcome").values[:, 0]
    assert [OUTCOMES[int(code)] for code in found[:3]] == ["refused", "dropped", "accepted"]
    assert np.isnan(found[3])


def test_each_clients_examples_are_those_that_it_last_trained_on():
    assert examples_by_client(client_rows(1)) == {"client-2": 102}


def test_accuracies_are_drawn_where_they_are_known_with_the_clients_spread_as_a_band():
    rows = [*ROWS, numbers(asdict(row(4, global_accuracy=None)))]
    drawn = traces(ACCURACY(rows))
    server = drawn["server's test set"]
    assert list(server.x) == [1, 2, 3]
    assert list(server.y) == [line["global_accuracy"] for line in ROWS]
    names = [trace.name for trace in ACCURACY(rows).data]
    for name, end in (
        ("clients, 10th percentile", "p10"),
        ("clients, 10th percentile to highest", "max"),
        ("clients, median", "median"),
        ("clients, lowest", "min"),
    ):
        assert list(drawn[name].y) == [line[f"client_accuracy_{end}"] for line in rows]
    # Between those two alone, one after the other.
    assert [name for name in names if drawn[name].fill] == [names[1]]
    assert names[:2] == ["clients, 10th percentile", "clients, 10th percentile to highest"]
    assert drawn[names[1]].fill == "tonexty"


def test_where_there_is_no_10th_percentile_the_band_begins_with_the_lowest():
    rows = [numbers(asdict(row(number, client_accuracy_p10=None))) for number in (1, 2)]
    names = [trace.name for trace in ACCURACY(rows).data]
    assert names[:2] == ["clients, lowest", "clients, lowest to highest"]
    assert names.count("clients, lowest") == 1


def test_what_nobody_measures_has_no_figure():
    assert figures.measured([{"round": 1, "global_loss": 0.5}], "accuracy") is None
    assert figures.measured([{"round": 1, "global_accuracy": 0.5}], "loss") is None


def test_a_tasks_own_metrics_of_clients_are_values_of_their_map():
    lines = [
        {"round": 1, "client_id": "a", "validation_metrics": {"f1": 0.5}, "train_metrics": None},
        {"round": 1, "client_id": "b", "train_metrics": {"f1": 0.25}},
    ]
    assert own_of_clients(lines) == ["training f1", "validation f1"]
    assert by_client(lines, "validation f1").values[0, 0] == 0.5
    assert np.isnan(by_client(lines, "validation f1").values[1, 0])


@pytest.mark.parametrize("rounds", [3, 500])
def test_what_became_of_the_clients_adds_up_to_those_selected(rounds):
    rows = [asdict(row(number)) for number in range(1, rounds + 1)]
    drawn = traces(figures.participation(rows))
    parts = sum(np.array(drawn[name].y) for name in ("accepted", "refused", "dropped"))
    assert parts.tolist() == list(drawn["selected"].y) == [3] * rounds


def test_columns_that_an_older_run_lacks_are_left_out_of_the_figures():
    rows = [{"round": 1, "global_accuracy": 0.5}, {"round": 2, "global_accuracy": 0.6}]
    assert list(traces(ACCURACY(rows))) == ["server's test set"]
    assert list(traces(figures.traffic(rows))) == []
    for draw in (LOSS, figures.seconds, figures.participation):
        draw(rows)


@pytest.mark.parametrize("draw", [ACCURACY, figures.participation, figures.traffic])
def test_the_axis_of_rounds_has_no_round_before_the_first(draw):
    assert draw(ROWS).layout.xaxis.minallowed == 0.5


def test_a_map_of_few_clients_is_high_enough_to_be_seen_and_one_of_many_no_higher_than_a_screen():
    heights = [
        maps.clients(by_client(client_rows(1, count), "train_loss"), "loss").layout.height
        for count in (3, 20, 500)
    ]
    assert heights[0] >= 300
    assert heights[0] < heights[1] < heights[2] == 1000


def test_a_tasks_own_metrics_are_drawn_by_their_names():
    line = asdict(row(1, global_metrics={"top3_accuracy": 0.75}, client_metrics={"f1": 0.5}))
    rows = [numbers(line)]
    assert {name: values.tolist() for name, values in own_metrics(rows).items()} == {
        "global top3 accuracy": [0.75],
        "client f1": [0.5],
    }
    assert set(traces(figures.own(rows))) == {"global top3 accuracy", "client f1"}
    assert figures.own(ROWS) is None


def test_a_confusion_matrix_is_shaded_by_the_share_of_the_true_class_and_says_the_counts():
    matrix = confusion_of({"confusion": confusion(11)})
    cells, texts = maps.confusion(matrix, NAMES).data
    assert np.array(cells.text).tolist() == confusion(11)
    assert texts.text[:3] == ("11", "1", "1")
    assert np.array(cells.z).sum(1) == pytest.approx([1] * 10)
    (bars,) = figures.per_class(matrix, NAMES).data
    assert np.array(bars.y) == pytest.approx([11 / 20] * 10)


@pytest.mark.parametrize(
    "damaged", [None, [], [[1, 2]], [[1], [2, 3]], [["1"]], [[1.5]], [[-1]], 7, [[[1]]]]
)
def test_what_is_no_confusion_matrix_is_none(damaged):
    assert confusion_of({"confusion": damaged}) is None


@pytest.mark.parametrize("partitions", [3, 60])
def test_a_split_is_bars_or_where_there_are_many_a_map(partitions):
    counts = np.arange(partitions * 4).reshape(partitions, 4) + 1
    names = [str(place) for place in range(partitions)]
    drawn = maps.split(names, counts.sum(1), counts, list("abcd")).data
    if partitions == 3:
        assert [trace.name for trace in drawn] == list("abcd")
        assert np.array([trace.x for trace in drawn]).T.tolist() == counts.tolist()
    else:
        sizes, cells = drawn
        assert list(sizes.y) == counts.sum(1).tolist()
        assert np.array(cells.z).sum(0) == pytest.approx([1] * partitions)


@pytest.mark.parametrize("partitions", [3, 60])
def test_a_split_without_classes_has_each_partitions_size(partitions):
    names = [str(place) for place in range(partitions)]
    (bars,) = maps.split(names, np.arange(partitions) + 1, None, []).data
    assert list(bars.x if partitions == 3 else bars.y) == list(range(1, partitions + 1))


def test_every_axis_says_what_it_has():
    table = by_client(client_rows(1), "train_loss")
    matrix = np.array(confusion(3))
    drawn = [
        *(draw(ROWS) for draw in (ACCURACY, LOSS, figures.participation)),
        *(draw(ROWS) for draw in (figures.seconds, figures.traffic)),
        maps.clients(table, "training loss"),
        maps.outcomes(by_client(client_rows(1), "outcome")),
        maps.confusion(matrix, NAMES),
        figures.per_class(matrix, NAMES),
        figures.examples({"client-0": 5.0}),
        figures.compare({"a": (column(ROWS, "round"), column(ROWS, "train_loss"))}, "round", "y"),
        maps.split(["0"], np.array([10]), matrix[:1], NAMES),
    ]
    for figure in drawn:
        assert figure.layout.xaxis.title.text, figure
        assert figure.layout.yaxis.title.text, figure


def test_runs_are_compared_by_the_options_that_differ():
    options = {
        "a": {"lr": 0.1, "seed": 0, "run_dir": "a"},
        "b": {"lr": 0.2, "seed": 0, "run_dir": "b", "new": 1},
    }
    assert differing(options) == {"lr": ["0.1", "0.2"], "new": ["–", "1"]}


def test_a_run_is_read_again_only_where_it_grew_and_anew_when_it_is_another(tmp_path):
    folder = begin(tmp_path / "a")
    commit(folder, 1)
    run = open_run(folder)
    assert [line["round"] for line in run.summary().rows] == [1]
    commit(folder, 2)
    assert open_run(folder) is run
    assert [line["round"] for line in run.summary().rows] == [1, 2]
    (folder / "new.json").write_text(json.dumps({"options": {"task": "mnist"}}))
    (folder / "new.json").replace(folder / "config.json")
    assert open_run(folder).option("task") == "mnist"


def test_damaged_lines_are_counted_and_the_others_shown(tmp_path):
    folder = begin(tmp_path / "a")
    commit(folder, 1)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('no json\n{"round": 2, "global_acc')
    run = open_run(folder)
    assert [line["round"] for line in run.summary().rows] == [1]
    assert run.damaged == 1


def test_committed_rounds_without_a_row_are_counted(tmp_path):
    folder = begin(tmp_path / "a")
    commit(folder, 1)
    (folder / "rounds" / "00003").mkdir(parents=True)
    (folder / "rounds" / "00003" / "record.json").touch()
    assert open_run(folder).missing == 2


def test_a_model_that_is_both_the_best_and_the_latest_is_offered_once(tmp_path):
    folder = begin(tmp_path / "a")
    assert open_run(folder).models() == {}
    (folder / "models").mkdir()
    (folder / "models" / "global.json").write_text('{"round": 0}')
    assert open_run(folder).models() == {}
    for name in ("best", "global"):
        (folder / "models" / f"{name}.json").write_text('{"round": 5}')
    assert open_run(folder).models() == {"best": {"round": 5}}
    (folder / "models" / "global.json").write_text('{"round": 6}')
    assert open_run(folder).models() == {"best": {"round": 5}, "global": {"round": 6}}


def test_what_can_not_be_read_is_one_line_and_no_traceback(tmp_path):
    folder = begin(tmp_path / "a")
    (folder / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl: can't be read: Is a directory"):
        open_run(folder).summary()
    with pytest.raises(InputError, match=r"config\.json: can't be read: No such file"):
        open_run(tmp_path / "none")
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"its config\.json is damaged"):
        open_run(folder)
    assert names_in(tmp_path) == ["a"]
    assert names_in(tmp_path / "none") == []


def test_names_are_shown_as_they_are_and_not_as_markdown():
    assert plain("*a_b* [x](y) $z$ :red[r]") == r"\*a\_b\* \[x\](y) \$z\$ \:red\[r\]"


def test_a_task_of_ones_own_is_named_where_the_dashboard_is_started():
    assert said(UnnamedTask("moons:Moons")).endswith(
        r"start ./scripts/dashboard again with --task moons\:Moons."
    )
    assert said(InputError("a_b")) == r"a\_b"


def test_a_picture_file_is_turned_as_its_camera_was_held(monkeypatch):
    st = pytest.importorskip("streamlit")
    from scripts.viewing import try_out

    picture = Image.new("L", (4, 2))
    exif = picture.getexif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    monkeypatch.setattr(st, "file_uploader", lambda *_: file)
    assert try_out._uploaded().size == (2, 4)
