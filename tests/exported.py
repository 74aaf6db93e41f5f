"""Small exported models, made without torch: what `./scripts/export` leaves behind."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from common.tasks.inputs import Characters, Images, describe
from scripts.serving import metadata as beside
from scripts.serving.metadata import Metadata, Value

GREY = Images(2, 2, mean=(0.5,), std=(0.25,))
ALPHABET = "abc "


def write_model(path, graph, inputs, *, classes=(), length=None, kind="onnx", **changes):
    """Write a graph and its metadata; `changes` are fields of the metadata to get wrong."""
    # The newest that every onnxruntime of this project reads.
    opset = [helper.make_opsetid("", 20)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    path.write_bytes(content)
    fields = {
        "file": path.name,
        "format": kind,
        "size_bytes": len(content),
        "sha256": beside.sha256_of(path),
        "run_id": "20260101-000000-tiny",
        "round": 3,
        "task": "tiny",
        "model": "linear",
        "input": _value(graph.input[0]),
        "output": _value(graph.output[0]),
        "classes": list(classes),
        "inputs": inputs and describe(inputs),
        "length": length,
        "evaluation": {"examples": 10, "loss": 0.5, "accuracy": 0.9},
        "versions": {"folkmoot": "0.1.0"},
    }
    beside.write(Metadata(**(fields | changes)), path)
    return path


def write_classifier(path, inputs=GREY, weights=None, classes=("dark", "light"), **changes):
    """Write a linear model of pictures; by default, "light" is what is lighter than grey."""
    size = (len(inputs.mean), inputs.height, inputs.width)
    if weights is None:
        weights = np.stack([-np.ones(np.prod(size)), np.ones(np.prod(size))], 1)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        ],
        "classifier",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *size])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    return write_model(path, graph, inputs, classes=classes, **changes)


def write_text(path, places="length", **changes):
    """Write a model of text in which each letter is followed by the next in "abc "."""
    inputs = Characters(ALPHABET)
    following = np.roll(np.eye(len(inputs), dtype=np.float32), 1, axis=1) * 5
    shape = ["batch", places]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["following", "tokens"], ["by_place"]),
            helper.make_node("Transpose", ["by_place"], ["scores"], perm=[0, 2, 1]),
        ],
        "text",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, shape)],
        [
            helper.make_tensor_value_info(
                "scores", TensorProto.FLOAT, ["batch", len(inputs), places]
            )
        ],
        [numpy_helper.from_array(following, "following")],
    )
    return write_model(path, graph, inputs, **({"length": 8} | changes))


def _value(info):
    kind = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64"}[
        info.type.tensor_type.elem_type
    ]
    sizes = [size.dim_param or size.dim_value for size in info.type.tensor_type.shape.dim]
    return Value(name=info.name, dtype=kind, shape=sizes)
