"""The generated code is that of federated.proto."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_committed_code_is_what_the_proto_generates(tmp_path):
    # As scripts/generate_protos does.
    command = f"""{sys.executable} -m grpc_tools.protoc -I. --python_out={tmp_path}
        --grpc_python_out={tmp_path} --mypy_out=quiet:{tmp_path} --mypy_grpc_out=quiet:{tmp_path}
        protos/federated.proto"""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command.split(), cwd=ROOT, env={**os.environ, "PATH": path}, check=True)
    generated = sorted((tmp_path / "protos").iterdir())
    committed = sorted((ROOT / "protos").glob("federated_pb2*"))
    assert [file.name for file in generated] == [file.name for file in committed]
    for new, old in zip(generated, committed, strict=True):
        assert new.read_text() == old.read_text(), f"run ./scripts/generate_protos: {old.name}"
