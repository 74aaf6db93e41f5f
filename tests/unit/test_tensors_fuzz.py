"""Whatever the bytes, reading them gives tensors or a TensorError, as the safetensors library does.

Where the two differ on purpose or by the libraries below them, and no more than there:
`views` knows the dtypes of a model only, takes no entries in JSON arrays, and does not look at
metadata; what is no tensor's business (a name that is half a character, a key twice, -0) it
takes as json does.
"""

import json
import struct
import tracemalloc
from contextlib import suppress

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from common.errors import TensorError
from common.tensors import encode, open_mapped, schema_of, views

PROFILE = settings(derandomize=True, deadline=None, database=None, max_examples=250)
MEMORY = 8 << 20

numbers = st.one_of(
    st.integers(0, 4),
    st.sampled_from([-1, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1, 1 << 64, 0.5, None]),
)
dtypes = st.sampled_from(["F32", "F64", "U8", "I16", "BOOL", "BF16", "F8_E4M3", "X", None])
entries = st.fixed_dictionaries(
    {"dtype": dtypes, "shape": st.lists(numbers, max_size=4)},
    optional={"data_offsets": st.lists(numbers, max_size=3), "more": st.just(1)},
)
SIZES = {"F32": 4, "F64": 8, "U8": 1, "I16": 2, "BOOL": 1, "BF16": 2}


def file_of(header, values=b"", length=None):
    return struct.pack("<Q", len(header) if length is None else length) + header + values


@st.composite
def nearly_right(draw):
    """Draw a file whose tensors lie one after the other, but for a number that may be off."""
    header, end = {}, 0
    for index in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(sorted(SIZES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = SIZES[dtype]
        for dimension in shape:
            size *= dimension
        header[f"t{index}"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    if header and draw(st.booleans()):
        entry = header[draw(st.sampled_from(sorted(header)))]
        place = draw(st.sampled_from([entry["shape"], entry["data_offsets"]]))
        if place:
            place[draw(st.integers(0, len(place) - 1))] = draw(numbers)
    text = json.dumps(header).encode()
    padding = draw(st.sampled_from([b"", b" ", b"       ", b"\n"]))
    data = bytes(max(0, end + draw(st.sampled_from([0, 0, 0, 1, -1]))))
    return file_of(draw(st.sampled_from([b"", b"", b" "])) + text + padding, data)


@st.composite
def mutated(draw):
    """Draw a right file with some bytes of its header replaced."""
    data = bytearray(encode({"w": torch.zeros(2, 3), "n": torch.tensor(1)}))
    for _ in range(draw(st.integers(1, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


files = st.one_of(
    st.binary(max_size=100),
    st.dictionaries(st.text(max_size=3), entries, max_size=3).map(
        lambda header: file_of(json.dumps(header).encode(), bytes(8))
    ),
    nearly_right(),
    mutated(),
)


def read(data):
    """Return the names, dtypes and shapes that `views` finds, or None."""
    try:
        found = views(memoryview(bytearray(data)))
    except TensorError:
        return None
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in found.items()}


@PROFILE
@given(files)
@example(file_of(b"[" * 100_000))
@example(file_of(b'{"a":' * 100_000))
@example(file_of(b"{}", length=1 << 63))
@example(file_of(b"{}", length=(1 << 64) - 1))
@example(file_of(b'{"t":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}}' % (b"9" * 5000), b"1"))
def test_any_bytes_are_tensors_or_a_tensor_error_within_little_memory(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    read(data)
    for reader in (open_mapped, schema_of):
        with suppress(TensorError):
            assert isinstance(reader(path), dict)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY + 20 * len(data)


@PROFILE
@given(nearly_right())
def test_a_file_is_refused_if_and_only_if_the_library_refuses_it(data):
    try:
        expected = {name for name, _ in deserialize(data)}
    except SafetensorError:
        expected = None
    found = read(data)
    assert (found if found is None else found.keys()) == expected
