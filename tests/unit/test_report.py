"""A run's report says what its files say: whole, growing, damaged and empty runs."""

import json
import os
import re
from html.parser import HTMLParser

import pytest
import torch
import yaml

from common.tasks import load_task
from common.tensors import encode
from scripts.cli import run_app
from scripts.reporting import card, page
from scripts.reporting.__main__ import app
from scripts.reporting.facts import collect
from server.storage.metrics import by_class
from tests.unit.test_show_split import options

# The script reads sys.argv, which the fixture sets.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked")

TASK = "tests.tasks:Owned"
HOSTILE = '<script>alert(1)</script>|"$x$` \u202e\x00'


def row(number, accuracy):
    return {
        "round": number,
        "global_accuracy": accuracy,
        "global_loss": 0.5,
        "client_accuracy": accuracy - 0.0123,
        "client_accuracy_min": 0.3217,
        "client_accuracy_p10": 0.4,
        "client_accuracy_median": 0.6,
        "client_accuracy_max": 0.9182,
        "train_loss": None,
        "cohort_size": 3,
        "accepted": 2,
        "dropped": 1,
        "refused": 0,
        "num_examples": 180,
        "bytes_up": 1_500_000,
        "bytes_down": 2_000,
        "duration_seconds": 2.5,
        "collect_seconds": 2.0,
        "aggregate_seconds": 0.5,
        "best_round": 2,
        "global_metrics": {"top3_accuracy": 0.7777},
    }


def client(number, name, outcome="accepted", examples=90):
    accuracy = 0.3217 if name == "ann" else None
    return {
        "round": number,
        "client_id": name,
        "outcome": outcome,
        "num_examples": examples if outcome == "accepted" else None,
        "validation_accuracy": accuracy,
        "seconds": 1.25,
    }


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(folder):
    """Write a run of three rounds, of which the second is the best."""
    (folder / "models").mkdir(parents=True)
    given = options(rounds=3, model="linear", seed=7, strategy="fedavg", local_layers="")
    config = {"run_id": "mine", "options": given, "versions": {"folkmoot": "0.1.0"}}
    (folder / "config.json").write_text(json.dumps(config))
    write_lines(folder / "metrics.jsonl", [row(n, a) for n, a in ((1, 0.5), (2, 0.8765), (3, 0.8))])
    write_lines(
        folder / "clients.jsonl",
        [client(n, name) for n in (1, 2, 3) for name in ("ann", "bob")]
        + [client(3, "cem", "dropped")],
    )
    confusion = [[60, 7, 0], [5, 61, 1], [0, 9, 57]]
    write_lines(folder / "evaluations.jsonl", [by_class(n, confusion) for n in (1, 2, 3)])
    torch.manual_seed(0)
    model = load_task(TASK).models["linear"]()
    (folder / "models" / "best.safetensors").write_bytes(encode(model.state_dict()))
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def pages(run):
    """Return the page, without its plots, and the card."""
    facts = collect(run, TASK)
    return Page(page.render(facts, {})), card.render(facts, ())


@pytest.fixture
def report(monkeypatch, capsys):
    def make(folder, *flags):
        argv = ["report", str(folder), "--task", TASK, *map(str, flags)]
        monkeypatch.setattr("sys.argv", argv)
        status = run_app(app)
        return (status, *capsys.readouterr())

    return make


class Page(HTMLParser):
    """The text of a page, the cells of its tables' rows, and what it would fetch."""

    def __init__(self, html):
        super().__init__()
        self.text, self.rows, self.tags, self.fetched = "", [], set(), []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self._cell = tag in ("td", "th")

    def handle_endtag(self, tag):
        self._cell = False

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


def head_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def markdown_rows(card):
    lines = (line for line in card.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_page_and_card_hold_the_numbers_of_the_runs_files(run):
    seen, text = pages(run)
    for cells in (
        ["accuracy (server's test set)", "0.8765", "0.8000"],
        ["top3_accuracy (server's test set)", "0.7777", "0.7777"],
        ["accuracy", "0.3217", "0.4000", "0.6000", "0.9182"],
        ["0", "67", f"{60 / 67:.4f}"],
    ):
        assert cells in seen.rows
        assert cells in markdown_rows(text)
    assert seen.rows[-1][:5] == ["3", "0.8000", "0.5000", "0.7877", "0.3217"]
    assert ["cem", "0", "0", "1", "–", "–", "1.2", "0 B"] in seen.rows
    assert "4.5 MB" in seen.text


def test_the_head_of_the_card_is_the_hubs_and_says_no_licence(run):
    head = head_of(pages(run)[1])
    assert head["tags"] == ["federated-learning", "pytorch", "fedavg"]
    assert head.keys().isdisjoint({"license", "datasets"})
    (model,) = head["model-index"]
    assert model["name"] == "mine"
    test, validation = model["results"]
    assert test["dataset"] == {"name": TASK, "type": TASK, "split": "test"}
    values = {metric["type"]: metric["value"] for metric in test["metrics"]}
    assert values == {"accuracy": 0.8765, "loss": 0.5, "top3_accuracy": 0.7777}
    assert [metric["value"] for metric in validation["metrics"]] == [0.8765 - 0.0123]


def test_the_card_loads_the_model_as_it_says(run, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", pages(run)[1], re.DOTALL)
    monkeypatch.chdir(run / "models")
    names = {}
    exec(code, names)  # noqa: S102
    assert names["model"](torch.zeros(1, 4)).shape == (1, 3)


def test_what_a_run_says_is_text_in_page_plots_and_card_and_nothing_is_fetched(run, report):
    config = json.loads((run / "config.json").read_text())
    config["run_id"] = config["options"]["model"] = HOSTILE
    config["options"]["hyperparameters"] = "---\n# title"
    (run / "config.json").write_text(json.dumps(config))
    write_lines(run / "clients.jsonl", [client(1, HOSTILE), client(1, "\ud800")])
    status, out, err = report(run)
    assert (status, err) == (0, "")
    folder = run / "report"
    assert f"Model card: {folder / 'README.md'}" in out
    for name in ("convergence", "confusion", "participation", "split", "seconds"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    html = (folder / "report.html").read_text(encoding="utf-8")
    seen, text = Page(html), (folder / "README.md").read_text(encoding="utf-8")
    assert seen.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "a"})
    assert all(link.startswith(("#", "data:image/png")) for link in seen.fetched)
    assert not re.search(r"@import|url\((?!#)", html)
    assert any(cells[0].startswith('<script>alert(1)</script>|"$x$` ') for cells in seen.rows)
    assert "3 partitions of 50 to 100 (median 50) examples and 3 classes." in seen.text
    assert head_of(text)["model-index"][0]["name"].startswith("<script>alert(1)</script>|")
    assert "<script>" not in text.split("---\n", 2)[2].split("```")[0]
    assert "\n# title" not in text


def test_a_run_that_goes_on_is_reported_as_it_stands(run):
    (run / "server.json").write_text(json.dumps({"pid": os.getpid()}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "global_acc')
    seen, text = pages(run)
    assert "After round 3 of 3, still running" in seen.text
    assert "damaged" not in seen.text
    assert "The training is not complete" in text


def test_a_run_says_how_it_ended(run):
    def progress(*events):
        write_lines(run / "server.jsonl", [{"event": event, "reason": "why"} for event in events])
        return collect(run, TASK).progress

    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]))
    assert progress("server started") == "interrupted after round 2 of 3"
    assert progress("server started", "run ended") == "ended after round 2 of 3: why"
    again = ("server started", "run ended", "server started")
    assert progress(*again) == "interrupted after round 2 of 3"
    (run / "metrics.jsonl").write_text("".join(lines))
    assert progress(*again) == "ended after round 3 of 3"


def test_damaged_lines_and_lost_rounds_are_noted(run):
    lines = [json.dumps(row(1, 0.5)), "\x00damaged", json.dumps(row(4, 0.5)), '{"round": "x"}', ""]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    (run / "evaluations.jsonl").write_text('{"round": 2, "confusion": [[1, 2], 3]}\n')
    strange = {"round": [], "client_id": {}}
    write_lines(run / "clients.jsonl", [strange, client(1, "ann", examples=7)])
    (run / "models" / "best.safetensors").write_bytes(b"damaged")
    facts = collect(run, TASK)
    assert facts.notes == [
        "1 damaged line of metrics.jsonl left out",
        "metrics.jsonl has no row of round 2 to 3",
        "the clients trained on other numbers of examples than the data here gives",
    ]
    assert (facts.by_class, facts.parts, facts.values) == (None, None, None)
    seen, text = pages(run)
    for note in facts.notes:
        assert note in seen.text
    assert "## How to load it" not in text


def test_committed_rounds_whose_rows_were_lost_are_noted_and_count_as_done(run):
    for number in (2, 3):
        (run / "rounds" / f"{number:05d}").mkdir(parents=True)
        (run / "rounds" / f"{number:05d}" / "record.json").touch()
    assert collect(run, TASK).notes == []
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0])
    facts = collect(run, TASK)
    assert facts.notes == ["metrics.jsonl has no row of round 2 to 3"]
    assert facts.progress == "ended after round 3 of 3"
    (run / "metrics.jsonl").unlink()
    facts = collect(run, TASK)
    assert facts.notes == ["metrics.jsonl has no row of round 1 to 3"]
    assert facts.progress == "ended after round 3 of 3"
    seen, text = pages(run)
    assert "No round is committed" not in seen.text
    assert "No client's update has gone into it" not in text


def test_a_run_without_a_round_or_a_known_task_says_so(run, report, tmp_path):
    for path in run.glob("*.jsonl"):
        path.unlink()
    config = json.loads((run / "config.json").read_text())
    config["options"] = {"task": "nowhere:Task"}
    (run / "config.json").write_text(json.dumps(config))
    before = sorted(run.rglob("*"))
    output = tmp_path / "elsewhere"
    status, out, err = report(run, "--output", output)
    assert (status, err) == (0, "")
    assert sorted(run.rglob("*")) == before
    assert out.startswith(
        "mine: interrupted before its first round\nNote:       without the task, "
    )
    assert "nowhere:Task, whose code would run here; if you trust it, add --task" in out
    assert "nothing to report yet" in Page((output / "report.html").read_text()).text
    assert "model-index" not in head_of((output / "README.md").read_text())


def test_wrong_input_is_one_line_and_status_2(run, report, tmp_path):
    (tmp_path / "file").touch()
    for arguments, said in (
        ((tmp_path,), f"error: {tmp_path} is no run directory: its config.json is not there\n"),
        ((run, "--output", tmp_path / "file"), f"error: --output: can't write {tmp_path / 'file'}"),
    ):
        status, out, err = report(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith(said)
        assert err.count("\n") == 1


def test_clients_are_sorted_as_on_the_dashboard(run):
    names = ["z", "client-10", "berlin", "client-2"]
    write_lines(run / "clients.jsonl", [client(1, name) for name in names])
    found = [client.name for client in collect(run, TASK).clients]
    assert found == ["berlin", "client-2", "client-10", "z"]
