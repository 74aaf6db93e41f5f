"""The text tasks: words and characters, whose they are, and the numbers of their evaluation."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import DataError, InputError
from common.tasks import Examples, load_task, next_word
from common.tasks.inputs import Characters
from common.tasks.next_word import NextWord, grouped
from common.tasks.shakespeare import Shakespeare
from common.tasks.text import TextTask, sequences
from common.tasks.words import Vocabulary, bundled_words, words


class Letters(TextTask):
    """Three letters and one class that is never suggested."""

    length = 2
    inputs = Characters("abc")

    def texts(self, data_dir):
        raise NotImplementedError


class Fixed(nn.Module):
    """Gives every place the same scores."""

    def __init__(self, probabilities):
        super().__init__()
        self.scores = torch.tensor(probabilities).log()

    def forward(self, tokens):
        return self.scores[None, :, None].expand(len(tokens), -1, tokens.shape[1])


def write_roles(data_dir, roles):
    path = data_dir / "shakespeare" / "by_role.json.gz"
    path.parent.mkdir(parents=True)
    data = {"user_data": {role: {"raw": raw} for role, raw in roles.items()}}
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def refusal(task, data_dir, train=True):
    with pytest.raises(DataError) as caught:
        task.data(data_dir, train=train)
    assert str(caught.value).startswith("--data-dir: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The Value", ["the", "value"]),
        ("Don't. Stop!", ["don't", ".", "stop", "!"]),
        ("It’s 5 o'clock...", ["it's", "o'clock", "."]),
        ("'quoted', (e.g. x.foo_bar)", ["quoted", ",", "e", "g", ".", "x", "foo", "bar"]),
        ("a ::= b == c", ["a", "b", "c"]),
        ("Ça été où?", ["ça", "été", "où", "?"]),
        (" 12 _ -- \n", []),
    ],
)
def test_a_text_is_lower_case_words_and_the_punctuation_after_them(text, found):
    assert words(text) == found


def test_known_words_are_numbered_by_rank_and_others_by_a_hash_that_never_changes():
    vocabulary = Vocabulary(["the", "."], buckets=8)
    # The CRC-32 of "folkmoot" and "zebra", by zlib, modulo 8.
    assert vocabulary.encode("The folkmoot. The zebra").tolist() == [0, 2 + 2, 1, 0, 2 + 6]
    assert len(vocabulary) == 10


def test_the_bundled_words_are_words_and_each_is_there_once():
    known = bundled_words()
    assert len(set(known)) == len(known) == 3000
    assert all(words(word) == [word] for word in known)


def test_targets_are_the_inputs_one_place_on_and_pieces_join_without_a_gap():
    pieces = sequences(np.arange(8), 3)
    assert pieces.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert sequences(np.arange(3), 3).shape == (0, 4)
    assert sequences(np.arange(0), 3).shape == (0, 4)


def test_shakespeare_is_split_by_role_and_in_time(tmp_path):
    # 5 lines of 50 characters: 200 of them to train on, which are two sequences.
    lines = [letter * 49 + "\n" for letter in "abcde"]
    long = "".join(f"{letter * 999}\n" for letter in "vwxyz")
    write_roles(tmp_path, {"B__LONG": long, "A__SHORT": "".join(lines), "C__NOTHING": "Ay.\n"})
    task = Shakespeare()
    inputs, targets = task.data(tmp_path, train=True)
    assert inputs.shape == targets.shape == (2 + 49, 80)
    assert task.owners(tmp_path) == ["A__SHORT"] * 2 + ["B__LONG"] * 49
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    text = "".join(lines)
    assert inputs[:2].flatten().tolist() == task.inputs.encode(text[:160]).tolist()
    assert targets[1, -1] == task.inputs.encode(text[160])[0]
    held_out = task.data(tmp_path, train=False).inputs
    assert set(held_out.flatten().tolist()) == set(task.inputs.encode("z").tolist())
    assert len(held_out) == 12


def test_characters_outside_the_alphabet_share_a_class():
    task = Shakespeare()
    assert (
        len(set(task.inputs.encode(task.inputs.symbols).tolist())) == len(task.inputs.symbols) == 72
    )
    assert task.inputs.encode("é€\U0001f600\ud800~").tolist() == [72] * 5


def test_the_character_model_is_the_papers():
    model = Shakespeare.models["lstm"]()
    assert sum(parameter.numel() for parameter in model.parameters()) == 818_065
    assert model(torch.zeros(2, 80, dtype=torch.int64)).shape == (2, 73, 80)


@pytest.mark.parametrize(
    "content", [None, b"", b"no gzip", gzip.compress(b"{", mtime=0), gzip.compress(b"[]", mtime=0)]
)
def test_shakespeare_that_cannot_be_read_is_an_error_that_says_where_it_comes_from(
    tmp_path, content
):
    path = tmp_path / "shakespeare" / "by_role.json.gz"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    message = refusal(Shakespeare(), tmp_path)
    assert message.startswith(f"--data-dir: no readable {path} (")
    assert "LEAF" in message


def test_shakespeare_without_a_whole_sequence_is_an_error(tmp_path):
    write_roles(tmp_path, {"A__B": "To be, or not to be.\n"})
    assert "81 tokens" in refusal(Shakespeare(), tmp_path)


@pytest.mark.parametrize("inner", ["", "text"])
def test_each_file_and_each_sub_folder_is_an_owner(tmp_path, inner):
    folder = tmp_path / inner
    text = "the cat. " * 100
    write(folder / "ada.txt", text)
    write(folder / "grace" / "one.txt", text)
    write(folder / "grace" / "more" / "two.txt", text)
    write(folder / "notes.md", text)
    (folder / "empty").mkdir()
    task = NextWord()
    # Four fifths of 300 words, and of twice as many.
    sizes = [239 // task.length, 479 // task.length]
    assert task.owners(tmp_path) == ["ada.txt"] * sizes[0] + ["grace"] * sizes[1]
    inputs, targets = task.data(tmp_path, train=True)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs[0, :3].tolist() == task.inputs.encode("the cat.").tolist()


def test_the_end_of_each_file_is_held_out(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / "ada" / f"{name}.txt", "the " * 400 + "a " * 100)
    assert set(NextWord().data(tmp_path, train=True).targets.flatten().tolist()) == {
        NextWord.inputs.encode("the")[0]
    }
    assert set(NextWord().data(tmp_path, train=False).targets.flatten().tolist()) == {
        NextWord.inputs.encode("a")[0]
    }


def test_a_folder_that_was_named_and_holds_no_text_is_never_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("elsewhere", "text", "data/text"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "README").touch()
        assert "no *.txt file" in refusal(NextWord(), folder)
    # An empty data/text was made by someone, too.
    assert "no *.txt file" in refusal(NextWord(), Path("data"))


def test_without_a_folder_the_text_is_pythons_help(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    topics = {f"topic{number}": f"word{number} the end. " * 100 for number in range(20)}
    monkeypatch.setattr("pydoc_data.topics.topics", topics)
    owners = NextWord().owners(Path("data"))
    assert set(owners) == {f"help-{number}" for number in range(10)}
    # One that is there for other tasks changes nothing; a run's config.json has its whole path.
    (tmp_path / "data" / "MNIST").mkdir(parents=True)
    assert NextWord().owners(Path("data")) == owners
    assert NextWord().owners(tmp_path / "data") == owners


def test_topics_go_largest_first_to_the_smallest_group_and_a_paragraph_is_there_once():
    topics = {"b": "same\n\n" + "b" * 9, "a": "same", "c": "c" * 7, "d": "d" * 5}
    assert grouped(topics, 2) == {"help-0": ["b" * 9, "same"], "help-1": ["c" * 7, "d" * 5]}


def test_text_that_is_not_utf_8_is_an_error_that_names_it(tmp_path):
    (tmp_path / "latin.txt").write_bytes("été".encode("latin-1"))
    assert f"can't read text in UTF-8 from {tmp_path / 'latin.txt'}" in refusal(
        NextWord(), tmp_path
    )


def test_text_too_short_for_a_sequence_is_an_error_that_says_which_part(tmp_path):
    write(tmp_path / "ada.txt", "word " * (NextWord.length + 20))
    assert len(NextWord().data(tmp_path, train=True).inputs) == 1
    assert "held-out text" in refusal(NextWord(), tmp_path, train=False)
    write(tmp_path / "ada.txt", "word " * NextWord.length)
    assert "training text" in refusal(NextWord(), tmp_path)


def test_a_sequence_model_may_not_look_ahead():
    torch.manual_seed(0)
    for task, classes in ((NextWord(), 3128), (Shakespeare(), 73)):
        model = task.models["lstm"]().eval()
        tokens = torch.randint(classes, (2, 12))
        changed = tokens.clone()
        changed[:, 7] = (changed[:, 7] + 1) % classes
        with torch.inference_mode():
            first, second = model(tokens), model(changed)
        assert first.shape == (2, classes, 12)
        assert torch.allclose(first[:, :, :7], second[:, :, :7])
        assert not torch.allclose(first[:, :, 7], second[:, :, 7])


def test_loss_accuracy_and_top_3_are_means_over_all_places():
    # The likeliest are 1, 0 and 3; class 2 is the fourth.
    model = Fixed([0.3, 0.4, 0.1, 0.2])
    targets = torch.tensor([[1, 1], [0, 2], [3, 2]])
    metrics = Letters().evaluate(model, Examples(torch.zeros_like(targets), targets)).metrics
    logs = [0.4, 0.4, 0.3, 0.1, 0.2, 0.1]
    assert metrics == pytest.approx(
        {
            "loss": -sum(map(math.log, logs)) / 6,
            "accuracy": 2 / 6,
            "top3_accuracy": 4 / 6,
        }
    )


def test_evaluation_in_batches_is_that_of_the_whole():
    targets = torch.arange(2 * 71).reshape(71, 2) % 4
    examples = Examples(torch.zeros_like(targets), targets)
    metrics = Letters().evaluate(Fixed([0.3, 0.4, 0.1, 0.2]), examples).metrics
    assert metrics["accuracy"] == pytest.approx((targets == 1).double().mean().item())
    assert metrics["top3_accuracy"] == pytest.approx((targets != 2).double().mean().item())


def test_suggestions_are_symbols_with_their_probabilities_and_never_the_last_class():
    model = Fixed([0.2, 0.1, 0.3, 0.4])
    assert Letters().suggest(model, "abc", 2) == [
        ("c", pytest.approx(0.3)),
        ("a", pytest.approx(0.2)),
    ]
    assert len(Letters().suggest(model, "x", 9)) == 3
    with pytest.raises(InputError, match="PROMPT"):
        Letters().suggest(model, "", 1)


def test_own_words_replace_the_bundled_ones_in_four_lines():
    vocabulary = Vocabulary(["le", "."], buckets=3)

    class Notes(NextWord):
        models = {"lstm": lambda: next_word.WordLstm(vocabulary)}

    Notes.inputs = vocabulary
    found = Notes().suggest(Notes.models["lstm"](), "le chat", 9)
    assert {word for word, _ in found} == {"le", "."}


def test_a_text_task_stays_with_its_owners_by_default():
    assert load_task("next_word").partitioner == load_task("shakespeare").partitioner == "natural"
