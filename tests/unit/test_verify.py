"""`./scripts/verify`: what it finds wrong with an exported model, and what it says of the rest."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save

from scripts.serving import metadata as beside
from scripts.serving.verify import main
from tests.exported import write_classifier, write_text


@pytest.fixture
def verify(monkeypatch, capsys):
    def run(path):
        monkeypatch.setattr("sys.argv", ["verify", str(path)])
        return (main(), *capsys.readouterr())

    return run


def as_format(path, kind, content):
    """Write a file of another format with the metadata of a model."""
    write_classifier(path)
    path.write_bytes(content)
    changes = {"format": kind, "sha256": beside.sha256_of(path), "size_bytes": len(content)}
    value = json.loads(beside.path_beside(path).read_text())
    beside.path_beside(path).write_text(json.dumps(value | changes))
    return path


@pytest.mark.parametrize("write", [write_classifier, write_text])
def test_a_model_that_is_whole_passes_each_check(tmp_path, verify, write):
    status, out, err = verify(write(tmp_path / "tiny.onnx"))
    assert (status, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["ok", check] for check in ("digest", "metadata", "load", "run")
    ]


@pytest.mark.parametrize("at", [0, 100, -1])
def test_a_changed_byte_is_found(tmp_path, verify, at):
    path = write_classifier(tmp_path / "tiny.onnx")
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    status, out, err = verify(path)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "is damaged, or not the file that its metadata describe" in err


def test_weights_that_are_not_finite_are_found(tmp_path, verify):
    path = write_classifier(tmp_path / "tiny.onnx", weights=np.full((4, 2), np.nan))
    status, _, err = verify(path)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "not finite" in err


def test_tensors_are_read_but_not_run(tmp_path, verify):
    content = save({"a": np.ones((2, 3), np.float32), "b": np.ones(1, np.int64)})
    status, out, _ = verify(as_format(tmp_path / "m.safetensors", "safetensors", content))
    assert status == 0
    assert "tensors   2 tensors, 7 finite values" in out
    assert "not checked  run" in out
    for damaged in (content[:-1], save({"a": np.array([np.inf])})):
        status, _, err = verify(as_format(tmp_path / "m.safetensors", "safetensors", damaged))
        assert (status, len(err.splitlines())) == (2, 1)


class Poison:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("kind", ["pth", "torch-export"])
def test_a_poisoned_pickle_is_only_digested_and_that_is_said(tmp_path, verify, kind):
    path = as_format(tmp_path / "m.pth", kind, pickle.dumps(Poison()))
    status, out, err = verify(path)
    assert (status, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["ok", "digest"],
        ["ok", "metadata"],
        ["not", "checked"],
    ]


def test_a_format_that_is_not_known_is_an_error(tmp_path, verify):
    status, _, err = verify(as_format(tmp_path / "m.bin", "onnx-2", b""))
    assert status == 2
    assert "no format 'onnx-2' is known" in err
