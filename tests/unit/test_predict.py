"""The scripts that use a run's model, on a small run directory."""

import io
import json
import math
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image

from common.durable import seal
from common.errors import InputError
from common.tasks import load_task, next_word
from common.tensors import encode
from scripts import perplexity, predict
from scripts.cli import run_app
from scripts.trained_run import load_trained
from tests.exported import write_classifier, write_text

# The scripts read sys.argv, which the fixture sets.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked")


def write_run(folder, task="next_word", names=("best", "global")):
    """Write what a run leaves behind, with untrained models."""
    torch.manual_seed(0)
    (folder / "models").mkdir(parents=True)
    config = {
        "run_id": "mine",
        "options": {"task": task, "model": next(iter(load_task(task).models))},
    }
    (folder / "config.json").write_text(json.dumps(seal(config)))
    tensors = encode(next(iter(load_task(task).models.values()))().state_dict())
    for name in names:
        (folder / "models" / f"{name}.safetensors").write_bytes(tensors)
    return folder


def array(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments, script=predict):
        monkeypatch.setattr("sys.argv", [script.__name__, *map(str, arguments)])
        status = run_app(script.app)
        return (status, *capsys.readouterr())

    return run


def test_the_likeliest_words_are_printed_with_their_probabilities(tmp_path, command):
    run = write_run(tmp_path / "run")
    status, out, err = command(run, "the value of the")
    # And the table's head.
    assert (status, err, len(out.splitlines())) == (0, "", 4)
    status, out, _ = command(run, "--top", 5, "--json", "the value of the")
    found = json.loads(out)
    assert (status, found["input"], len(found["answers"])) == (0, "the value of the", 5)
    probabilities = [answer["probability"] for answer in found["answers"]]
    assert probabilities == sorted(probabilities, reverse=True)


def test_without_an_input_each_line_is_a_text(tmp_path, command, monkeypatch):
    run = write_run(tmp_path / "run", task="shakespeare", names=["global"])
    monkeypatch.setattr("sys.stdin", io.StringIO("To be\n\nor not\n"))
    status, out, err = command(run, "--json")
    assert status == 0
    assert [json.loads(line)["input"] for line in out.splitlines()] == ["To be", "or not"]
    assert err == "error: INPUT: there is nothing to go on in the text ''\n"


@pytest.mark.parametrize(
    ("task", "names", "prompt", "said"),
    [
        (None, (), "a", "No such file or directory"),
        ("digits", ["best"], "a", "INPUT: a: No such file or directory"),
        ("next_word", (), "a", "has no model yet"),
        ("next_word", ["best"], "12", "INPUT: there is nothing to go on in the text '12'"),
    ],
)
def test_wrong_input_is_an_error_that_says_what(tmp_path, command, task, names, prompt, said):
    if task:
        write_run(tmp_path / "run", task, names)
    status, out, err = command(tmp_path / "run", prompt)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_model_that_nobody_has_trained_answers_nothing(tmp_path, command):
    run = write_run(tmp_path / "run", names=["global"])
    (run / "models" / "global.json").write_text(json.dumps({"round": 0}))
    status, out, err = command(run, "the value of the")
    assert (status, out) == (2, "")
    assert err == (
        f"error: {run} has no trained model yet, only the one that its first round begins with; "
        "wait for that round, or go on with the run\n"
    )


def test_another_task_than_the_runs_is_refused(tmp_path, command):
    run = write_run(tmp_path / "run")
    status, out, err = command(run, "--task", "digits", "the value of the")
    assert (status, out) == (2, "")
    assert err == f"error: --task: the run in {run} is of task next_word, not digits\n"
    assert command(run, "--task", "next_word", "the value of the")[0] == 0


def test_a_model_that_is_damaged_or_of_other_code_is_an_error(tmp_path, command):
    run = write_run(tmp_path / "run")
    for content in (b"damaged", encode({"weight": torch.zeros(2)})):
        (run / "models" / "best.safetensors").write_bytes(content)
        status, _, err = command(run, "a")
        assert status == 2
        assert "best.safetensors is no model of next_word as it is here" in err
        assert len(err.splitlines()) == 1


def test_perplexities_stand_beside_each_other(tmp_path, command):
    run = write_run(tmp_path / "run")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "ada.txt").write_text("the cat and the dog. " * 200)
    arguments = ("--run-dir", run, "--data-dir", tmp_path)
    status, out, _ = command(*arguments, "--json", script=perplexity)
    found = json.loads(out)
    assert (status, list(found)) == (0, ["model", "unigram", "bigram"])
    assert found["bigram"] < found["unigram"] < found["model"]
    heading, *table = command(*arguments, script=perplexity)[1].splitlines()
    assert heading.startswith("Perplexity on held-out text")
    assert [float(line.split()[0]) for line in table] == [round(f, 2) for f in found.values()]


def test_a_commands_log_is_said_once_for_a_person_and_not_among_what_is_printed(
    tmp_path, command, monkeypatch
):
    run = write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    topics = {f"topic{number}": f"word{number} the end. " * 100 for number in range(20)}
    monkeypatch.setattr("pydoc_data.topics.topics", topics)
    # As in a process of its own.
    next_word._mention_help.cache_clear()
    status, out, err = command("--run-dir", run, "--json", script=perplexity)
    assert (status, list(json.loads(out))) == (0, ["model", "unigram", "bigram"])
    assert re.fullmatch(r"\S+ \[info +\] no text of one's own.* data_dir=data\n", err)


def test_pictures_and_arrays_get_their_classes(tmp_path, command):
    model = write_classifier(tmp_path / "tiny.onnx")
    Image.new("L", (9, 9), 200).save(tmp_path / "grey.png")
    np.save(tmp_path / "one.npy", np.full((1, 2, 2), -1.0))
    np.save(tmp_path / "two.npy", np.stack([np.full((1, 2, 2), value) for value in (1, -1)]))
    inputs = [str(tmp_path / name) for name in ("grey.png", "one.npy", "two.npy")]
    status, out, err = command(model, *inputs, "--json", "--top", 1)
    found = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert [line["input"].removeprefix(f"{tmp_path}/") for line in found] == [
        *("grey.png", "one.npy", "two.npy[0]", "two.npy[1]")
    ]
    assert [line["answers"][0]["label"] for line in found] == ["light", "dark", "light", "dark"]
    # Scores of -4 and 4.
    assert found[1]["answers"][0]["probability"] == pytest.approx(1 / (1 + math.exp(-8)))
    status, out, _ = command(model, inputs[1])
    assert [line.split()[-2:] for line in out.splitlines()[1:]] == [
        ["dark", "99.97%"],
        ["light", "0.03%"],
    ]


def test_a_run_answers_pictures_and_arrays_as_its_task_reads_them(tmp_path, command):
    run = write_run(tmp_path / "run", task="digits")
    task, model, *_ = load_trained(run)
    example = np.zeros((1, 8, 8), np.float32)
    example[0, 2:6, 3:5] = 0.8
    Image.fromarray(task.inputs.decode(example)[..., 0]).save(tmp_path / "one.png")
    np.save(tmp_path / "one.npy", example)
    _, out, _ = command(run, tmp_path / "one.png", tmp_path / "one.npy", "--json")
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(example)[None]).softmax(1).max().item()
    for line in out.splitlines():
        assert json.loads(line)["answers"][0]["probability"] == pytest.approx(expected)


def test_a_run_of_ones_own_task_answers_arrays_of_the_shape_of_its_data(tmp_path, command):
    run = write_run(tmp_path / "run", task="tests.tasks:Tiny")
    examples = np.eye(2, 4, dtype=np.float32)
    np.save(tmp_path / "one.npy", examples[0])
    np.save(tmp_path / "two.npy", examples)
    np.save(tmp_path / "wide.npy", examples[:, :3])
    flags = ("--task", "tests.tasks:Tiny", "--json")
    status, out, err = command(run, tmp_path / "one.npy", tmp_path / "two.npy", *flags)
    assert (status, err) == (0, "")
    answers = [json.loads(line)["answers"] for line in out.splitlines()]
    assert answers[0] == answers[1] != answers[2]
    status, _, err = command(run, tmp_path / "wide.npy", *flags)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "wide.npy: an input's shape must be [4], not [3]" in err


def test_scores_that_are_not_of_classes_are_refused(tmp_path, command):
    run = write_run(tmp_path / "run", task="tests.tasks:Unread")
    np.save(tmp_path / "two.npy", np.eye(2, 4, dtype=np.float32))
    status, _, err = command(run, tmp_path / "two.npy", "--task", "tests.tasks:Unread")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "outputs are of shape [n, 2, 3], not [n, classes]" in err
    assert "or the input is of another shape than it takes" in err


@pytest.mark.parametrize(
    ("kind", "shape", "head", "said"),
    [
        ("Column", [4], "value", r"price +\S+ EUR"),
        ("Flat", [4], "value", r"price +\S+ EUR"),
        ("OwnLoss", [4], "value", r"value +-?[\d.]+"),
        ("Several", [4], "value", r"0 +-?[\d.]+"),
        ("Tags", [4], "probability", r"[abc] +[\d.]+% (yes|no)"),
        ("Pixels", [1, 4, 4], "share of the places", r"(dark|light) +100.00%"),
        ("Lazy", [1, 4, 4], "probability", r"[01] +[\d.]+%"),
    ],
)
def test_a_run_answers_what_its_outputs_are(tmp_path, command, kind, shape, head, said):
    task = f"tests.kinds:{kind}"
    run = write_run(tmp_path / "run", task)
    np.save(tmp_path / "one.npy", np.zeros(shape, np.float32))
    status, out, err = command(run, tmp_path / "one.npy", "--task", task)
    assert status == 0
    assert out.splitlines()[0].endswith(head)
    assert re.search(said + r"\n", out)
    assert ("do not say what these numbers are" in err) == (kind == "OwnLoss")
    _, out, _ = command(run, tmp_path / "one.npy", "--task", task, "--json")
    found = json.loads(out)
    assert np.shape(found.get("map", [])) == ((4, 4) if kind == "Pixels" else (0,))
    if kind in {"Column", "Flat", "OwnLoss"}:
        with torch.inference_mode():
            wanted = load_trained(run, task=task).model(torch.zeros(1, 4)).item()
        assert [answer["value"] for answer in found["answers"]] == [pytest.approx(wanted)]


def test_an_input_of_two_tensors_is_said_to_be_none_that_can_be_named(tmp_path, command):
    run = write_run(tmp_path / "run", "tests.kinds:TwoInputs")
    np.save(tmp_path / "one.npy", np.zeros(4, np.float32))
    status, _, err = command(run, tmp_path / "one.npy", "--task", "tests.kinds:TwoInputs")
    assert (status, err.count("\n")) == (2, 1)
    assert "an input of the task is not one tensor" in err


def test_a_text_that_is_exported_goes_on_by_its_end(tmp_path, command):
    model = write_text(tmp_path / "tiny.onnx")
    _, out, _ = command(model, "--json", "--top", 9, "xx" * 50 + "ab", "?")
    found = [json.loads(line)["answers"] for line in out.splitlines()]
    assert found[0][0]["label"] == "c"
    # What is not in the alphabet is seen, but never suggested.
    assert [{answer["label"] for answer in answers} for answers in found] == [set("abc ")] * 2
    _, out, _ = command(model, "c")
    assert re.split(r"  +", out.splitlines()[1].strip())[:2] == ["c", '" "']


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.png", b"", "a.png: no readable picture"),
        ("a.npy", b"", "a.npy: no array in numpy's format"),
        ("a.npy", pickle.dumps([1]), "a.npy: no array in numpy's format"),
        ("a.npy", array(np.zeros((2, 2))), "shape must be [1, 2, 2], not [2, 2]"),
        ("a.npy", array(np.zeros((0, 1, 2, 2))), "shape must be [1, 2, 2], not [0, 1, 2, 2]"),
    ],
)
def test_a_file_that_is_no_input_is_an_error(tmp_path, command, name, content, said):
    model = write_classifier(tmp_path / "tiny.onnx")
    (tmp_path / name).write_bytes(content)
    status, out, err = command(model, tmp_path / name)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
    assert command(model)[2] == "error: INPUT: name picture or .npy files\n"


def test_a_run_of_any_task_is_loaded_its_best_model_first(tmp_path):
    run = write_run(tmp_path / "run", task="digits")
    found = load_trained(run)
    assert (found.path, found.options["task"]) == (run / "models" / "best.safetensors", "digits")
    assert load_trained(run, "global").path == run / "models" / "global.safetensors"
    (run / "models" / "best.safetensors").unlink()
    assert load_trained(run).path == run / "models" / "global.safetensors"
    with pytest.raises(InputError, match="has no model called best"):
        load_trained(run, "best")


def test_a_model_that_left_layers_at_its_clients_says_so(tmp_path):
    run = write_run(tmp_path / "run", task="digits")
    config = json.loads((run / "config.json").read_text())
    config["options"]["local_layers"] = "^0"
    (run / "config.json").write_text(
        json.dumps(seal({k: config[k] for k in ("run_id", "options")}))
    )
    tensors = load_task("digits").models["cnn"]().state_dict()
    left = {name: value for name, value in tensors.items() if not name.startswith("0")}
    (run / "models" / "best.safetensors").write_bytes(encode(left))
    with pytest.raises(InputError, match=r"left the layers '\^0' at its clients"):
        load_trained(run)
