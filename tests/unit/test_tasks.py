"""The built-in tasks, and finding a task by its name."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from common.errors import DataError, InputError
from common.tasks import BUILT_IN, Task, load_task, mnist

IDX_FILES = {
    "train-images-idx3-ubyte": (3, 28, 28),
    "train-labels-idx1-ubyte": (3,),
    "t10k-images-idx3-ubyte": (2, 28, 28),
    "t10k-labels-idx1-ubyte": (2,),
}


def idx(shape, value=7):
    """Return the bytes of an idx file of unsigned bytes that all have one value."""
    size = int(torch.tensor(shape).prod())
    return struct.pack(f">BBBB{len(shape)}i", 0, 0, 8, len(shape), *shape) + bytes([value]) * size


def write_mnist(data_dir, source="MNIST"):
    raw = data_dir / source / "raw"
    raw.mkdir(parents=True)
    for name, shape in IDX_FILES.items():
        (raw / name).write_bytes(idx(shape))
    return raw


def parameter_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def refusal(task_name, data_dir):
    with pytest.raises(DataError) as caught:
        load_task(task_name).data(data_dir, train=True)
    return str(caught.value)


def test_digits_are_8_by_8_from_0_to_1_in_10_classes(tmp_path):
    for train, size in [(True, 1437), (False, 360)]:
        inputs, targets = load_task("digits").data(tmp_path, train=train)
        assert (inputs.shape, inputs.dtype) == ((size, 1, 8, 8), torch.float32)
        assert (targets.shape, targets.dtype) == ((size,), torch.int64)
        assert (inputs.min(), inputs.max()) == (0.0, 1.0)
        assert targets.unique().tolist() == list(range(10))


def test_digits_held_out_are_not_trained_on(tmp_path):
    from sklearn.datasets import load_digits

    task = load_task("digits")
    both = [task.data(tmp_path, train=train) for train in (True, False)]
    images = torch.cat([part.inputs for part in both]).mul(16).reshape(-1, 64)
    # Each of the 1,797 images is on one side, and on one only.
    known = torch.from_numpy(load_digits().data).float()
    assert sorted(images.tolist()) == sorted(known.tolist())


def test_digits_are_the_same_each_time(tmp_path):
    first, second = (load_task("digits").data(tmp_path, train=True) for _ in range(2))
    assert torch.equal(first.inputs, second.inputs)
    assert first.targets[:8].tolist() == [7, 1, 9, 8, 5, 0, 4, 5]


def test_the_digits_model_takes_digits():
    model = load_task("digits").models["cnn"]()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_models_are_those_of_the_paper(name):
    models = load_task(name).models
    assert list(models) == ["cnn", "mlp"]
    assert parameter_count(models["cnn"]()) == 1_663_370
    assert parameter_count(models["mlp"]()) == 199_210
    assert models["cnn"]()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert models["mlp"]()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "source", "mean", "std"),
    [("mnist", "MNIST", 0.1307, 0.3081), ("fashion_mnist", "FashionMNIST", 0.2860, 0.3530)],
)
def test_mnist_is_read_from_its_four_files_and_standardised(tmp_path, name, source, mean, std):
    write_mnist(tmp_path, source)
    for train, size in [(True, 3), (False, 2)]:
        inputs, targets = load_task(name).data(tmp_path, train=train)
        assert (inputs.shape, inputs.dtype) == ((size, 1, 28, 28), torch.float32)
        assert inputs[0, 0, 0, 0].item() == pytest.approx((7 / 255 - mean) / std, rel=1e-5)
        assert (targets.tolist(), targets.dtype) == ([7] * size, torch.int64)


def write_writers(data_dir, classes, writers):
    """Write QMNIST's file, of which MNIST's class and the writer are the first and third column."""
    path = data_dir / "QMNIST" / "raw" / "qmnist-train-labels-idx2-int.gz"
    path.parent.mkdir(parents=True)
    rows = [
        (c, 4, writer, 59, 35, 229421, 0, 0) for c, writer in zip(classes, writers, strict=True)
    ]
    numbers = [0x0C02, len(rows), 8, *(number for row in rows for number in row)]
    path.write_bytes(gzip.compress(struct.pack(f">{len(numbers)}i", *numbers)))
    return path


def test_mnist_owners_are_the_writers_that_qmnist_names(tmp_path):
    write_mnist(tmp_path)
    write_writers(tmp_path, [7, 7, 7], [2170, 9, 2170])
    assert load_task("mnist").owners(tmp_path) == ["2170", "9", "2170"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(gzip.compress(b"<html>")),
        lambda path: path.write_bytes(gzip.compress(b"<html></html>")[::-1]),
    ],
)
def test_unreadable_writers_are_an_error_that_says_where_they_come_from(tmp_path, damage):
    write_mnist(tmp_path)
    path = write_writers(tmp_path, [7, 7, 7], [1, 2, 3])
    damage(path)
    with pytest.raises(DataError) as caught:
        load_task("mnist").owners(tmp_path)
    assert str(caught.value).startswith(f"--data-dir: no readable writers in {path} (")
    assert f"torchvision.datasets.QMNIST('{tmp_path}', what='train'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_writers_of_other_examples_than_mnists_are_an_error(tmp_path):
    write_mnist(tmp_path)
    write_writers(tmp_path, [7, 3, 7], [1, 2, 3])
    with pytest.raises(DataError, match="its classes are not those of MNIST's"):
        load_task("mnist").owners(tmp_path)


def test_mnist_that_cannot_be_downloaded_is_an_error_that_says_where_it_goes(tmp_path, monkeypatch):
    def offline(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(mnist, "_download", offline)
    message = refusal("mnist", tmp_path)
    assert message.startswith(f"--data-dir: no readable MNIST in {tmp_path} (no route to host)")
    assert f"put its four idx files into {tmp_path}/MNIST/raw" in message


def test_mnist_is_downloaded_only_if_its_folder_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "_download", lambda _set, source, path: write_mnist(path, source))
    assert len(load_task("mnist").data(tmp_path, train=True).inputs) == 3
    assert len(load_task("mnist").data(tmp_path, train=True).inputs) == 3


class FakeDataset:
    """Stands for torchvision's class: puts a file where that one puts its own."""

    fails = False

    def __init__(self, folder, **_):
        raw = Path(folder) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        (raw / "file").write_text("new")
        if self.fails:
            raise OSError("connection lost")


class BrokenDataset(FakeDataset):
    """One whose download breaks halfway."""

    fails = True


def test_a_download_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(OSError, match="connection lost"):
        mnist._download(BrokenDataset, "MNIST", tmp_path / "data")
    assert not (tmp_path / "data").exists()
    mnist._download(FakeDataset, "MNIST", tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["MNIST"]


def test_a_download_that_comes_second_leaves_the_first(tmp_path):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "file").write_text("first")
    mnist._download(FakeDataset, "MNIST", tmp_path)
    assert (tmp_path / "MNIST" / "raw" / "file").read_text() == "first"


def leave_empty(raw):
    for name in IDX_FILES:
        (raw / name).unlink()


def lose_one(raw):
    (raw / "t10k-labels-idx1-ubyte").unlink()


def cut_short(raw):
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def write_nothing(raw):
    (raw / "train-images-idx3-ubyte").write_bytes(b"")


def write_a_web_page(raw):
    (raw / "train-images-idx3-ubyte").write_bytes(b"<html>404 Not Found</html>")


def write_an_unknown_type(raw):
    (raw / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 10, 3]) + bytes(40))


@pytest.mark.parametrize(
    "damage",
    [leave_empty, lose_one, cut_short, write_nothing, write_a_web_page, write_an_unknown_type],
)
def test_unreadable_mnist_is_an_error_that_says_where_it_goes(tmp_path, damage):
    damage(write_mnist(tmp_path))
    message = refusal("mnist", tmp_path)
    assert message.startswith(f"--data-dir: no readable MNIST in {tmp_path}")
    assert "\n" not in message


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_built_in_task_is_found_by_its_name(name):
    assert isinstance(load_task(name), Task)


OWN_TASK = """
from common.tasks import Examples, Task

class Mine(Task):
    models = {}
    def data(self, data_dir, train):
        return Examples(None, None)

instance = Mine()
"""


@pytest.mark.parametrize("attribute", ["Mine", "instance"])
def test_a_task_of_ones_own_is_found_as_a_class_or_an_instance(tmp_path, monkeypatch, attribute):
    (tmp_path / f"own_{attribute.lower()}.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    assert type(load_task(f"own_{attribute.lower()}:{attribute}")).__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nonsense", "no task 'nonsense'; use one of digits, mnist, fashion_mnist"),
        ("digits:", "no task 'digits:'"),
        ("", "no task ''"),
        ("no_such_module:Task", "no module 'no_such_module'"),
        ("json.nothing:Task", "no module 'json.nothing'"),
        ("json:nothing", "has no attribute 'nothing'"),
        ("json:dumps", "'json:dumps' is not a common.tasks.Task"),
        (":Task", "':Task'"),
        (".json:Task", "'.json:Task'"),
        ("common.tasks:Task", "'common.tasks:Task'"),
    ],
)
def test_a_name_that_is_no_task_is_an_error_that_says_what_was_looked_for(name, said):
    with pytest.raises(InputError) as caught:
        load_task(name)
    assert str(caught.value).startswith("--task: ")
    assert said in str(caught.value)
