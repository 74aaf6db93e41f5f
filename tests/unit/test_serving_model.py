"""Exported models without torch: what they are checked for, what they take, what they answer."""

import json
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from common.pictures import MOST_PIXELS, open_picture
from common.tasks.inputs import Images
from common.tasks.outputs import Answer
from scripts.serving import metadata as beside
from scripts.serving.loading import load_model
from tests.exported import GREY, write_classifier, write_text


@pytest.fixture
def classifier(tmp_path):
    return load_model(write_classifier(tmp_path / "tiny.onnx"))[0]


@pytest.fixture
def text(tmp_path):
    return load_model(write_text(tmp_path / "text.onnx"))[0]


def encoded(picture, kind="PNG"):
    file = BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def test_probabilities_are_the_softmax_of_the_scores(classifier):
    found = classifier.predict([np.full((1, 2, 2), 1, np.float32)])
    assert found == pytest.approx(np.array([[1 / (1 + np.exp(8)), 1 / (1 + np.exp(-8))]]))
    assert [answer.label for answer in classifier.answers(found[0], 5)] == ["light", "dark"]
    # Scores of a thousand don't overflow.
    assert classifier.predict([np.full((1, 2, 2), 1e3, np.float32)]).tolist() == [[0, 1]]


def test_classes_without_names_are_their_numbers(tmp_path):
    model, _ = load_model(write_classifier(tmp_path / "tiny.onnx", classes=()))
    assert model.answers(np.array([0.4, 0.6]), 1) == [Answer("1", 0.6)]


def test_a_batch_is_answered_as_its_examples_alone(text):
    examples = [text.of_text(value) for value in ("a", "ab", "abc abc", "?")]
    alone = [text.predict([example])[0] for example in examples]
    np.testing.assert_allclose(text.predict(examples), alone)


def test_a_model_of_texts_of_one_length_answers_shorter_ones_as_any_length(tmp_path, text):
    fixed, _ = load_model(write_text(tmp_path / "fixed.onnx", places=8))
    examples = [text.of_text(value) for value in ("a", "abc")]
    np.testing.assert_allclose(fixed.predict(examples), text.predict(examples))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("ab", "must be numbers"),
        (None, "must be numbers"),
        ({}, "must be numbers"),
        ([["1", "0"], ["0", "1"]], "must be numbers"),
        ([[[True, False], [False, True]]], "must be numbers"),
        ([], r"shape must be \[1, 2, 2\], not \[0\]"),
        (3, r"shape must be \[1, 2, 2\], not \[\]"),
        ([[1, 2], [3, 4]], r"shape must be \[1, 2, 2\], not \[2, 2\]"),
        ([[[1, 2], [3]]], "different lengths"),
        ([[[1, 2], [3, float("nan")]]], "must be finite"),
        ([[[1, 2], [3, 1e300]]], "must be finite"),
        ([[[1, 2], [3, 10**400]]], "must be numbers"),
    ],
)
def test_what_is_no_example_is_refused(classifier, values, said):
    with pytest.raises(InputError, match=said):
        classifier.of_array(values)


def test_scores_that_overflow_are_refused(classifier):
    example = classifier.of_array(np.full((1, 2, 2), 3e38))
    with pytest.raises(InputError, match="not finite"):
        classifier.predict([example])


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([], r"must be numbers|shape must be \[1 to 8\]"),
        ([0] * 9, r"shape must be \[1 to 8\], not \[9\]"),
        ([[0]], r"shape must be \[1 to 8\]"),
        ([0.5], "of type int64"),
        ([-1], "tokens must be from 0 to 4"),
        ([5], "tokens must be from 0 to 4"),
        ([2**63], "tokens must be from 0 to 4"),
    ],
)
def test_what_are_no_tokens_is_refused(text, tokens, said):
    with pytest.raises(InputError, match=said):
        text.of_array(tokens)


def test_what_a_model_does_not_take_is_refused(classifier, text):
    with pytest.raises(InputError, match="takes pictures, not text"):
        classifier.of_text("a")
    with pytest.raises(InputError, match="takes text, not pictures"):
        text.of_picture(Image.new("L", (2, 2)))
    with pytest.raises(InputError, match="nothing to go on"):
        text.of_text("")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_a_picture_of_each_kind_is_read(classifier, kind, mode):
    picture = Image.new("L", (30, 20), 255)
    if kind != "JPEG":
        picture = picture.convert(mode)
    example = classifier.of_picture(open_picture(encoded(picture, kind)))
    assert example.ravel().tolist() == pytest.approx([2] * 4, abs=0.1)


def test_a_picture_is_turned_as_its_camera_was_held():
    picture = Image.new("L", (4, 2))
    exif = picture.getexif()
    exif[274] = 6
    file = BytesIO()
    picture.save(file, "JPEG", exif=exif)
    assert open_picture(file.getvalue()).size == (2, 4)


def test_a_picture_that_would_be_huge_is_refused_before_it_is_decoded():
    bomb = encoded(Image.new("1", (MOST_PIXELS // 1000 + 1, 1000)))
    assert len(bomb) < 10_000
    with pytest.raises(InputError, match="at most 16,000,000"):
        open_picture(bomb)


@pytest.mark.parametrize("cut", range(0, 500, 45))
def test_a_picture_that_is_cut_off_or_none_is_refused(cut):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    content = encoded(Image.fromarray(noise))
    assert len(content) > 500
    for bytes_ in (content[:cut], b"<svg>" + content[:cut], bytes(cut)):
        with pytest.raises(InputError, match="no readable picture; use one of PNG"):
            open_picture(bytes_)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "pth"}, "is pth; what runs without torch is --format onnx"),
        ({"sha256": "0" * 64}, "is damaged, or not the file"),
        ({"classes": ("one",)}, "not 1 scores, one for each name"),
        ({"classes": (1, 2)}, "a class has no name"),
        ({"inputs": {"kind": "sound"}}, "no description of inputs"),
        ({"inputs": {"kind": "image", "height": 9, "width": 2, "mean": [0], "std": [1]}}, "shape"),
        ({"inputs": {"kind": "image", "height": 2, "width": 2, "mean": 0, "std": ["a"]}}, "a"),
        ({"inputs": ["image"]}, "metadata beside it are not this model's"),
    ],
)
def test_metadata_that_are_not_the_models_are_refused(tmp_path, changes, said):
    path = write_classifier(tmp_path / "tiny.onnx")
    value = json.loads(beside.path_beside(path).read_text())
    beside.path_beside(path).write_text(json.dumps(value | changes))
    with pytest.raises(InputError, match=said):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("input", {"name": "other"}),
        ("input", {"dtype": "int64"}),
        ("input", {"shape": ["batch", 2, 2]}),
        ("input", {"shape": 4}),
        ("output", {"name": "other"}),
        ("output", {"shape": ["batch", 3]}),
    ],
)
def test_metadata_of_other_tensors_are_refused(tmp_path, name, changes):
    path = write_classifier(tmp_path / "tiny.onnx")
    value = json.loads(beside.path_beside(path).read_text())
    value[name] |= changes
    beside.path_beside(path).write_text(json.dumps(value))
    with pytest.raises(InputError, match="metadata beside it are not this model's"):
        load_model(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"PK\x03\x04", bytes(1000)])
def test_what_is_no_onnx_is_refused_though_its_digest_is_right(tmp_path, content):
    path = write_classifier(tmp_path / "tiny.onnx")
    path.write_bytes(content)
    value = json.loads(beside.path_beside(path).read_text())
    beside.path_beside(path).write_text(json.dumps(value | {"sha256": beside.sha256_of(path)}))
    with pytest.raises(InputError, match="is no model for onnxruntime"):
        load_model(path)


def test_a_model_without_metadata_is_refused(tmp_path):
    path = write_classifier(tmp_path / "tiny.onnx")
    beside.path_beside(path).unlink()
    with pytest.raises(InputError, match=r"tiny.onnx.json: No such file.*keep its metadata beside"):
        load_model(path)
    with pytest.raises(InputError, match="No such file"):
        load_model(tmp_path / "none.onnx")


@pytest.mark.parametrize("text", ["[]", "{}", '{"input": 1, "output": 2}', "not JSON"])
def test_metadata_that_are_none_are_refused_in_plain_words(tmp_path, text):
    path = write_classifier(tmp_path / "tiny.onnx")
    beside.path_beside(path).write_text(text)
    with pytest.raises(InputError, match="no metadata of a model; export it again"):
        load_model(path)


def test_a_run_directory_is_no_exported_model(tmp_path):
    with pytest.raises(InputError, match=r"is a folder; of a run, \./scripts/export"):
        load_model(tmp_path)


def test_a_text_model_says_how_much_it_takes_at_once(tmp_path):
    path = write_text(tmp_path / "text.onnx", length=None)
    with pytest.raises(InputError, match="length is missing"):
        load_model(path)


def test_a_model_of_colour_pictures_takes_them(tmp_path):
    colour = Images(1, 1, mean=(0, 0, 0), std=(1, 1, 1))
    model, _ = load_model(
        write_classifier(tmp_path / "c.onnx", colour, np.eye(3), classes=("red", "green", "blue"))
    )
    picture = open_picture(encoded(Image.new("RGB", (5, 5), "lime")))
    found = model.predict([model.of_picture(picture)])[0]
    assert model.answers(found, 1)[0].label == "green"


def test_answering_needs_no_torch(tmp_path):
    path = write_classifier(tmp_path / "tiny.onnx", GREY)
    script = (
        "import sys, pathlib, numpy; from scripts.serving.loading import load_model;"
        f"model = load_model(pathlib.Path({str(path)!r}))[0];"
        "model.predict([numpy.zeros((1, 2, 2), 'float32')]);"
        "heavy = {'torch', 'onnx', 'structlog', 'cyclopts', 'PIL', 'grpc'} & sys.modules.keys();"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
