"""What a person has becomes what a model takes: pictures, characters, words."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.tasks import load_task
from common.tasks.inputs import Characters, Images, describe, load
from common.tasks.words import Vocabulary

GREY = Images(2, 2, mean=(0.5,), std=(0.25,))


def picture(rows):
    return Image.fromarray(np.array(rows, np.uint8))


def test_a_pictures_values_are_standardised_by_channel():
    assert GREY.encode(picture([[0, 255], [255, 0]])).tolist() == [[[-2, 2], [2, -2]]]
    colour = Images(1, 1, mean=(0, 0.5, 1), std=(1, 1, 0.5))
    assert colour.encode(picture([[[255, 0, 0]]])).ravel().tolist() == [1, -0.5, -2]


def test_a_picture_of_another_size_is_resized_by_the_mean_of_its_areas():
    large = np.kron([[0, 255], [255, 0]], np.ones((3, 3)))
    assert GREY.encode(picture(large)).tolist() == [[[-2, 2], [2, -2]]]


def test_only_a_light_border_is_inverted_where_the_background_is_dark():
    dark = Images(3, 3, mean=(0,), std=(1,), dark=True)
    ink = np.array([[0, 0, 0], [0, 255, 0], [0, 0, 0]])
    expected = (ink / 255).tolist()
    assert dark.encode(picture(ink))[0].tolist() == expected
    assert dark.encode(picture(255 - ink))[0].tolist() == expected
    light = Images(3, 3, mean=(0,), std=(1,))
    assert light.encode(picture(255 - ink))[0].tolist() == (1 - ink / 255).tolist()


def test_what_is_transparent_is_white():
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert GREY.encode(clear).tolist() == [[[2, 2], [2, 2]]]


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_an_example_decoded_and_encoded_again_is_the_same(name):
    inputs = load_task(name).inputs
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (inputs.height, inputs.width), np.uint8)
    pixels[0] = pixels[-1] = pixels[:, 0] = pixels[:, -1] = 0
    values = inputs.encode(picture(pixels))
    assert inputs.decode(values)[..., 0].tolist() == pixels.tolist()


def test_the_bundled_digits_are_pictures_of_their_inputs():
    task = load_task("digits")
    example = task.data(Path(), train=False).inputs[0].numpy()
    again = task.inputs.encode(picture(task.inputs.decode(example)[..., 0]))
    assert np.abs(again - example).max() < 1 / 255


@pytest.mark.parametrize("inputs", [GREY, Characters("ab \n"), Vocabulary(["the", "."], 3)])
def test_inputs_are_the_same_after_a_way_through_json(inputs):
    again = load(json.loads(json.dumps(describe(inputs))))
    assert describe(again) == json.loads(json.dumps(describe(inputs)))
    if not isinstance(inputs, Images):
        assert again.encode("the b.").tolist() == inputs.encode("the b.").tolist()


@pytest.mark.parametrize(
    "described", [{}, {"kind": "sound"}, {"kind": "image"}, {"kind": "words", "words": []}]
)
def test_what_describes_no_inputs_is_refused(described):
    with pytest.raises(ValueError, match="no description of inputs"):
        load(described)


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist"])
def test_a_classifiers_classes_have_names(name):
    assert len(set(load_task(name).classes)) == 10
