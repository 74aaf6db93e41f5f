"""The tab in which a person tries a run's model: on a test example, a picture, or a text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from common.pictures import open_picture
from common.tasks import Classes, Labels, Map, Outputs, Values
from common.tasks.inputs import Images
from common.tasks.outputs import Value
from scripts.viewing import figures, maps
from scripts.viewing.drawing import sheet
from scripts.viewing.messages import plain
from scripts.viewing.runs import Run, named_task
from scripts.viewing.tables import number
from server.storage.run_files import RunFiles

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from common.tasks import Examples
    from scripts.trained_run import TrainedRun

_MODELS = {"best": "the best", "global": "the latest"}
_EXAMPLE, _DRAWN, _FILE = "An example of the test set", "A drawing", "A picture file"
# Of more classes, the likeliest are shown.
_MOST_CLASSES = 10
# Of more numbers, the first are shown.
_MOST_NUMBERS = 30
_SHOWN_PIXELS = 224
# More than most cameras have; what is packed into a small file may be larger.
_MOST_PIXELS = 80_000_000


def show(run: Run) -> None:
    """Let a person feed the model and see what it says."""
    models = run.models()
    if not models:
        st.info("There is no model yet; the first round makes one.")
        return
    which = next(iter(models))
    if len(models) == 1:
        st.caption(f"The model of round {models[which].get('round', '–')}.")
    else:
        which = st.segmented_control(
            "Model",
            list(models),
            default=which,
            required=True,
            format_func=lambda name: f"{_MODELS[name]}, round {models[name].get('round', '–')}",
        )
    trained = _trained(run.path, which, str(models[which].get("blake3")))
    match trained.task.inputs:
        case None:
            _on_example(trained)
        case Images() as images:
            _on_picture(trained, images)
        case _:
            _on_text(trained)


@st.cache_resource(show_spinner="Loading the model …", max_entries=8)
def _trained(path: Path, which: str, digest: str) -> TrainedRun:  # noqa: ARG001
    import torch

    from scripts.trained_run import load_trained

    # The training beside it needs the others.
    torch.set_num_threads(1)
    # The dashboard's --task is of one of its runs.
    named = named_task()
    return load_trained(path, which, named if named == RunFiles(path).options["task"] else None)


@st.cache_resource(show_spinner="Loading the test set …", max_entries=2)
def _test_set(_trained: TrainedRun, task: str, data_dir: str) -> Examples:  # noqa: ARG001
    from scripts.trained_run import read_test_set

    return read_test_set(_trained.task, Path(data_dir))


def _on_picture(trained: TrainedRun, images: Images) -> None:
    kind = st.segmented_control("Input", [_EXAMPLE, _DRAWN, _FILE], default=_EXAMPLE, required=True)
    if kind == _EXAMPLE:
        _on_example(trained, images)
        return
    left, right = st.columns([1, 2])
    with left:
        if kind == _DRAWN:
            st.caption("Draw it large, and in the middle.")
            picture = sheet("sheet")
        else:
            picture = _uploaded()
    if picture is None:
        return
    values = images.encode(picture)
    with left:
        _show_input(images, values, "What the model sees")
    with right:
        import torch

        _show_prediction(trained, torch.from_numpy(values).unsqueeze(0))


def _uploaded() -> Image | None:
    file = st.file_uploader("Picture", ["png", "jpg", "jpeg", "gif", "bmp", "webp"])
    return None if file is None else open_picture(file.getvalue(), _MOST_PIXELS)


def _on_example(trained: TrainedRun, images: Images | None = None) -> None:
    options = trained.options
    examples = _test_set(trained, str(options["task"]), str(options["data_dir"]))
    count = len(examples.targets)
    if "example" not in st.session_state:
        st.session_state["example"] = 0

    def another() -> None:
        st.session_state["example"] = random.randrange(count)

    left, right = st.columns([1, 2])
    with left:
        place = st.number_input(f"Example, 0 to {count - 1}", 0, count - 1, key="example")
        st.button("Another one", icon=":material/shuffle:", on_click=another)
        # One that is no tensor may take slices only.
        example, target = (part[place : place + 1] for part in examples)
        if images is not None:
            _show_input(images, example[0].numpy(), "What the model sees")
    with right:
        _show_prediction(trained, example, target)


def _show_input(images: Images, values: NDArray[np.float32], caption: str) -> None:
    from PIL import Image

    pixels = images.decode(values)
    small = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    scale = max(1, _SHOWN_PIXELS // max(small.size))
    size = (small.width * scale, small.height * scale)
    st.image(small.resize(size, Image.Resampling.NEAREST), caption)


def _show_prediction(
    trained: TrainedRun,
    example: Any,  # noqa: ANN401 - as the task's inputs are
    target: torch.Tensor | None = None,
) -> None:
    from scripts.viewing.prediction import predict

    outputs, found = predict(trained.task, trained.model, example, target)
    true = None if target is None else target[0].numpy()
    match outputs:
        case Map():
            _show_map(outputs, found, true)
        case Labels():
            _show_labels(outputs, found, true)
        case Classes():
            _show_classes(outputs, found, true)
        case _:
            _show_values(outputs, found, true)


def _show_classes(outputs: Classes, found: NDArray[np.float64], true: NDArray[Any] | None) -> None:
    names = [outputs.name(place) for place in range(len(found))]
    likeliest = int(found.argmax())
    said = f"**{plain(names[likeliest])}** with {found[likeliest]:.1%}"
    if true is None or true.ndim or not 0 <= true < len(names):
        st.markdown(said)
    elif true == likeliest:
        st.markdown(f"{said}, which is right. :green[:material/check:]")
    else:
        st.markdown(f"{said}; it is **{plain(names[int(true)])}**. :red[:material/close:]")
    # In the classes' own order where they are few, so that one prediction looks like another.
    order = range(len(found)) if len(found) <= _MOST_CLASSES else found.argsort()[::-1]
    shown = list(order)[:_MOST_CLASSES]
    figure = figures.probabilities(
        [names[i] for i in shown], [number(float(found[i])) for i in shown]
    )
    st.plotly_chart(figure, key="probabilities", config={"displayModeBar": False})


def _show_labels(outputs: Labels, found: NDArray[np.float64], true: NDArray[Any] | None) -> None:
    answers = outputs.answers(found, len(found))
    held = [plain(answer.label) for answer in answers if answer.said.endswith("yes")]
    st.markdown(f"**{', '.join(held) or 'No label holds'}**, from {outputs.threshold:.0%} on")
    if true is not None:
        wanted = [plain(outputs.name(place)) for place in np.flatnonzero(true > 0.5).tolist()]
        st.markdown(f"True are: **{', '.join(wanted) or 'none'}**")
    shown = range(len(found)) if len(found) <= _MOST_CLASSES else found.argsort()[::-1]
    places = [int(place) for place in shown][:_MOST_CLASSES]
    figure = figures.probabilities(
        [outputs.name(place) for place in places], [number(float(found[i])) for i in places]
    )
    st.plotly_chart(figure, key="labels", config={"displayModeBar": False})


def _show_map(outputs: Map, found: NDArray[np.float64], true: NDArray[Any] | None) -> None:
    places = outputs.places(found)
    for title, classes in (("Predicted", places), ("True", true)):
        if classes is not None and classes.ndim == 2:
            st.subheader(title)
            names = [outputs.name(place) for place in range(len(found))]
            st.plotly_chart(maps.places(classes, names), key=f"map-{title}")
    said = [f"{plain(a.label)} {a.said}" for a in outputs.answers(found, _MOST_CLASSES)]
    st.markdown(f"Of the places: {', '.join(said)}")


def _show_values(
    outputs: Outputs | None, found: NDArray[np.float64], true: NDArray[Any] | None
) -> None:
    if outputs is None:
        st.caption("The task's `outputs` do not say what these numbers are.")
    answers = (outputs or Values()).answers(found, 0)[:_MOST_NUMBERS]
    names, numbers = [], []
    for answer in answers:
        if isinstance(answer, Value):
            names.append(f"{answer.label} ({answer.unit})" if answer.unit else answer.label)
            numbers.append(answer.value)
    known = [] if true is None or true.size != found.size else true.reshape(-1).tolist()
    figure = figures.values(names, numbers, known[: len(names)])
    st.plotly_chart(figure, key="values", config={"displayModeBar": False})


def _on_text(trained: TrainedRun) -> None:
    from scripts.trained_run import text_task

    prompt = st.text_input("Text so far", "the value of the", max_chars=5000)
    count = st.slider("Suggestions", 1, 20, 5)
    suggested = text_task(trained).suggest(trained.model, prompt, count)
    # A space or the end of a line would not be seen.
    names = [text if text.strip() else repr(text) for text, _ in suggested]
    figure = figures.probabilities(names, [probability for _, probability in suggested])
    st.subheader("What comes next")
    st.plotly_chart(figure, key="suggestions", config={"displayModeBar": False})
