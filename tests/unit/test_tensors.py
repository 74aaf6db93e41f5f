"""Tensors as safetensors bytes, and the checks of what comes from outside."""

import json
import math
import sys

import pytest
import torch
from blake3 import blake3

from common.errors import TensorError
from common.tensors import (
    WINDOW,
    TensorSpec,
    allocate,
    check_finite,
    check_integers,
    check_schema,
    copy_header,
    digest_bytes,
    digest_file,
    encode,
    open_mapped,
    schema_of,
    views,
    windows,
)

SCHEMA = {"bias": TensorSpec("F32", (3,)), "weight": TensorSpec("F32", (3, 4))}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]


def decode(data):
    return views(memoryview(bytearray(data)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_tensors_come_back_as_they_were(dtype, shape):
    tensor = torch.ones(shape, dtype=dtype)
    found = decode(encode({"w": tensor}))["w"]
    assert (found.dtype, found.shape) == (dtype, torch.Size(shape))
    assert torch.equal(found, tensor)


def test_the_same_tensors_give_the_same_bytes_in_any_order_of_names():
    tensors = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int64)}
    assert encode(tensors) == encode(dict(reversed(tensors.items())))


def test_views_and_gradients_are_encoded_by_value():
    grid = torch.arange(6.0).reshape(2, 3).requires_grad_()
    found = decode(encode({"transposed": grid.T, "row": grid[1]}))
    assert found["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["row"].tolist() == [3, 4, 5]


def test_tied_weights_are_encoded_under_each_name():
    tied = torch.ones(2)
    found = decode(encode({"a": tied, "b": tied}))
    assert found["a"].tolist() == found["b"].tolist() == [1, 1]


@pytest.mark.parametrize("data", [b"", b"nonsense", encode({"w": torch.ones(3)})[:-1]])
def test_bytes_that_are_no_safetensors_file_are_an_error(tmp_path, data):
    path = tmp_path / "update.safetensors"
    path.write_bytes(data)
    with pytest.raises(TensorError):
        decode(data)
    for read in (open_mapped, schema_of):
        with pytest.raises(TensorError, match=r"^update\.safetensors is not a readable"):
            read(path)


@pytest.mark.parametrize("read", [open_mapped, schema_of])
def test_a_missing_file_is_an_error_that_names_it(tmp_path, read):
    with pytest.raises(TensorError, match=r"^missing\.safetensors"):
        read(tmp_path / "missing.safetensors")


def test_a_mapped_file_holds_what_was_encoded(tmp_path):
    tensors = {"w": torch.arange(5.0), "n": torch.tensor(3, dtype=torch.int64)}
    (tmp_path / "m").write_bytes(encode(tensors))
    mapped = open_mapped(tmp_path / "m")
    assert mapped.keys() == tensors.keys()
    assert all(torch.equal(mapped[name], tensors[name]) for name in tensors)


def test_a_schema_is_names_dtypes_and_shapes(tmp_path):
    tensors = {"weight": torch.ones(3, 4), "bias": torch.ones(3), "n": torch.tensor(1)}
    (tmp_path / "m").write_bytes(encode(tensors))
    assert schema_of(tmp_path / "m") == SCHEMA | {"n": TensorSpec("I64", ())}


def test_the_schema_of_the_model_is_accepted():
    check_schema(dict(reversed(SCHEMA.items())), SCHEMA)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"bias": SCHEMA["bias"]}, "tensor 'weight' is missing"),
        (SCHEMA | {"extra": TensorSpec("F32", ())}, "tensor 'extra' is not in the model"),
        (
            SCHEMA | {"weight": TensorSpec("F32", (4, 3))},
            r"tensor 'weight' is F32 of shape \[4, 3\], the model's is F32 of shape \[3, 4\]",
        ),
        (
            SCHEMA | {"bias": TensorSpec("F64", (3,))},
            r"tensor 'bias' is F64 of shape \[3\], the model's is F32 of shape \[3\]",
        ),
    ],
)
def test_another_schema_is_an_error_that_names_the_tensor(schema, message):
    with pytest.raises(TensorError, match=f"^{message}$"):
        check_schema(schema, SCHEMA)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_value_that_is_not_finite_is_an_error_that_names_the_tensor(value, dtype):
    tensors = {"a": torch.ones(2), "b": torch.tensor([0.0, value], dtype=dtype)}
    with pytest.raises(TensorError, match="'b' holds NaN or infinity"):
        check_finite(tensors)


def test_a_value_that_is_not_finite_is_found_in_the_last_window():
    large = torch.zeros(WINDOW + 1)
    check_finite({"w": large, "n": torch.tensor(2**62), "none": torch.zeros(0)})
    large[-1] = math.nan
    with pytest.raises(TensorError, match="'w'"):
        check_finite({"w": large})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_check_returns_the_norm_of_all_floating_point_values(dtype):
    tensors = {"a": torch.full((4,), 6.0, dtype=dtype), "b": torch.tensor([5.0], dtype=dtype)}
    assert check_finite({**tensors, "n": torch.tensor(9), "none": torch.zeros(0)}) == 13.0
    assert check_finite({"n": torch.tensor(9)}) == 0.0


def test_a_norm_is_finite_where_squares_are_not():
    large = torch.tensor([3e200, -4e200], dtype=torch.float64)
    assert check_finite({"a": large, "b": torch.tensor([3e38])}) == pytest.approx(5e200)
    together = {"a": torch.full((WINDOW + 1,), 1e20), "b": torch.tensor([3.0])}
    assert check_finite(together) == pytest.approx(1e20 * math.sqrt(WINDOW + 1))
    assert check_finite({"a": torch.full((9,), 1.7e308, dtype=torch.float64)}) <= sys.float_info.max
    small = torch.full((9,), 1e-38)
    assert check_finite({"a": small}) == pytest.approx(3e-38)


def test_the_norm_is_of_all_floating_point_values_together():
    tensors = {"a": torch.full((WINDOW + 1,), 1e20), "b": torch.tensor([3.0]), "n": torch.tensor(9)}
    assert check_finite(tensors) == pytest.approx(1e20 * math.sqrt(WINDOW + 1))
    assert check_finite({"n": torch.tensor(9)}) == 0


INTEGERS = [torch.int8, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint64]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_base_plus_an_update_must_stay_within_an_integers_dtype(dtype):
    least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    values = sorted({least, least + 1, least // 2, max(least, -1), 0, 1, most // 2, most - 1, most})
    for old in values:
        for update in values:
            base, tensors = (
                {"n": torch.tensor([[0], [value]], dtype=dtype), "z": torch.tensor(0, dtype=dtype)}
                for value in (old, update)
            )
            if least <= old + update <= most:
                check_integers(tensors, base)
            else:
                with pytest.raises(TensorError, match=r"tensor 'n': the base .* overflows u?int"):
                    check_integers(tensors, base)


def test_integers_of_no_or_one_value_are_checked_without_a_warning(recwarn):
    for shape in ((), (0, 3)):
        base = {"n": torch.full(shape, -5, dtype=torch.int64)}
        check_integers(base | {"w": torch.tensor(1.0)}, base)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("size", "lengths"),
    [(0, []), (1, [1]), (WINDOW, [WINDOW]), (2 * WINDOW + 3, [WINDOW, WINDOW, 3])],
)
def test_windows_cover_a_tensor_in_order_as_views(size, lengths):
    tensor = torch.arange(size)
    found = list(windows(tensor))
    assert [len(window) for window in found] == lengths
    assert torch.equal(torch.cat([*found, torch.arange(0)]), tensor)
    assert all(window.untyped_storage().data_ptr() == tensor.data_ptr() for window in found)


def test_a_number_is_one_window_of_one_value():
    assert [window.tolist() for window in windows(torch.tensor(5.0))] == [[5.0]]


def test_a_digest_is_hash_and_size(tmp_path):
    data = bytes(range(256)) * 9
    (tmp_path / "file").write_bytes(data)
    assert digest_bytes(data) == (blake3(data).hexdigest(), len(data))
    assert digest_file(tmp_path / "file") == digest_bytes(memoryview(data))


def header_of(entries, values=b"", **extra):
    text = json.dumps(entries | extra).encode()
    return memoryview(bytearray(len(text).to_bytes(8, "little") + text + values))


def entry(dtype="U8", shape=(2,), offsets=(0, 2)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_views_are_of_the_payload_and_no_copy():
    payload = memoryview(bytearray(encode({"w": torch.zeros(3)})))
    views(payload)["w"].fill_(7)
    assert views(payload)["w"].tolist() == [7, 7, 7]


def test_a_payload_with_metadata_and_tensors_in_any_order_is_read():
    entries = {"b": entry(offsets=(2, 4)), "a": entry()}
    found = views(header_of(entries, b"\1\2\3\4", __metadata__={"by": "someone"}))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [1, 2], "b": [3, 4]}


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (header_of({"w": entry()}, b"\1"), "not where"),
        (header_of({"w": entry()}, b"\1\2\3"), "1 bytes belong to no tensor"),
        (header_of({"w": entry(offsets=(1, 3))}, b"\1\2\3"), "not where"),
        (header_of({"a": entry(), "b": entry()}, b"\1\2"), "not where"),
        (header_of({"w": entry(shape=(3,))}, b"\1\2"), "not where"),
        (header_of({"w": entry(shape=(-1, -2))}, b"\1\2"), "header is damaged"),
        (header_of({"w": entry(shape=(2.0,))}, b"\1\2"), "header is damaged"),
        (header_of({"w": entry(shape=(True, 2))}, b"\1\2"), "header is damaged"),
        (header_of({"w": entry(shape=2)}, b"\1\2"), "header is damaged"),
        (header_of({"w": entry(offsets=(0, 1, 2))}, b"\1\2"), "header is damaged"),
        (header_of({"w": entry(offsets=(0,))}, b"\1\2"), "header is damaged"),
        (header_of({"w": entry(dtype="F12")}, b"\1\2"), "unknown dtype"),
        (header_of({"w": entry(dtype=[])}, b"\1\2"), "header is damaged"),
        (header_of({"w": 3}), "header is damaged"),
        (header_of({"w": entry(shape=(0, 1 << 63), offsets=(0, 0))}), "no tensor has the shape"),
        (header_of({"w": entry(shape=(1 << 32, 1 << 32, 0), offsets=(0, 0))}), "no tensor has"),
        (memoryview(b"\5\0\0\0\0\0\0\0\xef\xbb\xbf{}"), "header is damaged"),
        (memoryview(b"\2\0\0\0\0\0\0\0[]"), "header is damaged"),
        (memoryview(b"\1\0\0\0\0\0\0\0["), "header is damaged"),
        (memoryview(b"\xff\xff\xff\xff\xff\xff\xff\xff{}"), "shorter than its header"),
    ],
)
def test_a_payload_whose_header_lies_is_an_error(payload, problem):
    with pytest.raises(TensorError, match=problem):
        views(payload)


def test_a_shape_that_no_tensor_has_is_an_error_in_a_file_too(tmp_path):
    (tmp_path / "m").write_bytes(header_of({"w": entry(shape=(0, 1 << 63), offsets=(0, 0))}))
    with pytest.raises(TensorError, match=r"^m is not a readable"):
        open_mapped(tmp_path / "m")


def test_a_copied_header_gives_the_tensors_of_the_source():
    source = memoryview(bytearray(encode({"w": torch.ones(3), "n": torch.tensor(2)})))
    target = allocate(len(source))
    copy_header(source, target)
    assert {name: (t.dtype, t.shape) for name, t in views(target).items()} == {
        name: (t.dtype, t.shape) for name, t in views(source).items()
    }
