"""Coverage-guided fuzzing of the two parsers of bytes from outside: chunks, and tensors.

`python -m scripts.resilience.coverage PARSER FOLDER SECONDS` is one of them under atheris,
which never returns; FOLDER holds the bytes to begin with, and takes those that are new.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from common.errors import InputError, RunFailed

_EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")
_LARGEST = 4096
# Two good chunks of each kind, and a file with two tensors.
_HEADER = (
    b'{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
    b'"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}'
)
_SEEDS = {
    "chunks": [b"\x12\x08\x08\x05\x12\x02hi\x18\x01", b"\x12\x04\x12\x02hi", b"\x0a\x02\x08\x01"],
    "tensors": [len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(9), b"\2" + bytes(7) + b"{}"],
}


def run(seconds: int) -> None:
    """Fuzz each parser for half of the time, and print how often it ran.

    Raises:
        InputError: atheris is not installed.
        RunFailed: a parser did what it must not.
    """
    if find_spec("atheris") is None:
        raise InputError("atheris is missing; install the extra: pip install --editable '.[fuzz]'")
    for parser, seeds in _SEEDS.items():
        with tempfile.TemporaryDirectory() as name:
            for number, seed in enumerate(seeds):
                (Path(name) / str(number)).write_bytes(seed)
            command = [sys.executable, "-m", __name__, parser, name, str(max(1, seconds // 2))]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            grown = sum(1 for _ in Path(name).iterdir()) - len(seeds)
        executed = _EXECUTED.search(ended.stderr)
        if ended.returncode or executed is None:
            print(ended.stdout + ended.stderr, file=sys.stderr)
            raise RunFailed(f"{parser}: the parser failed, see above")
        print(f"{parser}: {executed[1]} executions, {grown} of them reached something new")


def _fuzz(parser: str, folder: str, seconds: str) -> None:
    import atheris

    with atheris.instrument_imports(include=["protos.chunks", "common.tensors", "json"]):
        from google.protobuf.message import DecodeError

        from common import errors, tensors
        from common.transfer import Piece
        from protos import chunks
        from protos import federated_pb2 as pb

    def try_chunks(data: bytes) -> None:
        expected = found = None
        with suppress(DecodeError):
            expected = pb.PushUpdateRequest.FromString(data)
        with suppress(DecodeError):
            found = chunks.decode_message(data, pb.PushUpdateRequest)
        if isinstance(found, Piece) and expected is not None:
            offset, values, last = found
            expected.chunk.DiscardUnknownFields()
            same = expected.chunk == pb.Chunk(offset=offset, data=bytes(values), finish_write=last)
        else:
            same = found == expected
        if not same:
            raise AssertionError(f"{found} is not {expected}")

    def try_tensors(data: bytes) -> None:
        with suppress(errors.TensorError):
            tensors.views(memoryview(bytearray(data)))

    flags = [f"-max_total_time={seconds}", f"-max_len={_LARGEST}", "-print_final_stats=1"]
    target = {"chunks": try_chunks, "tensors": try_tensors}[parser]
    atheris.Setup([parser, *flags, f"-artifact_prefix={folder}/", folder], target)
    atheris.Fuzz()


if __name__ == "__main__":
    _fuzz(*sys.argv[1:])
