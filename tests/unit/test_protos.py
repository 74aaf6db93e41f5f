"""The generated code is that of federated.proto, which keeps what it has released."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


# The last released contract lies in tests/contract, where a module of buf begins.
RELEASED = '{"version": "v2", "modules": [{"path": "tests/contract"}]}'


def breaking(root):
    buf = Path(sys.executable).parent / "buf"
    command = [buf, "breaking", ".", "--against", ".", "--against-config", RELEASED]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_fields_of_the_released_contract_are_kept():
    found = breaking(ROOT)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("int32 max_metrics = 3;", "int64 max_metrics = 3;"),
        ("bytes task_token = 2;           // One assignment, one upload.", ""),
        ("OUTCOME_INVALID = 5;", "OUTCOME_INVALID = 7;"),
        ("rpc Leave(LeaveRequest) returns (LeaveResponse);", ""),
    ],
)
def test_a_field_outcome_or_method_that_goes_or_changes_is_seen(tmp_path, before, after):
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "tests" / "contract", tmp_path / "tests" / "contract")
    text = (ROOT / "protos" / "federated.proto").read_text()
    assert before in text
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "federated.proto").write_text(text.replace(before, after))
    assert breaking(tmp_path).returncode == 100


WORD = re.compile(r"[A-Z]+(?:_[A-Z]+)+")
# Canonical statuses, how a name is written, and what isn't an error of the server.
OTHERS = {
    *("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "PERMISSION_DENIED"),
    *("RESOURCE_EXHAUSTED", "OUT_OF_RANGE", "DEADLINE_EXCEEDED", "UPPER_SNAKE"),
    *("SERVICE_SUFFIX", "CLIENT_ID", "UPDATE_NOT_FINITE"),
}


def reasons_of_the_contract():
    """Return the words in upper case with an underscore that its comments name as reasons."""
    text = (ROOT / "protos" / "federated.proto").read_text()
    comments = "\n".join(line.partition("//")[2] for line in text.splitlines())
    values = set(re.findall(r"\b([A-Z_]+) = \d", text))
    short = {name.partition("_")[2] for name in values}
    return set(WORD.findall(comments)) - OTHERS - values - short


def calls(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield node


def test_each_reason_that_the_server_gives_is_in_the_contract_and_the_other_way_round():
    given = {
        argument.value
        for call in calls("server")
        if getattr(call.func, "id", "") in ("RequestError", "invalid")
        for argument in call.args
        if isinstance(argument, ast.Constant) and WORD.fullmatch(str(argument.value))
    }
    # FIELD_INVALID is the default of `invalid`.
    assert given | {"FIELD_INVALID"} == reasons_of_the_contract()


def test_each_reason_of_the_contract_is_expected_by_a_test_through_a_channel():
    files = [*(ROOT / "tests" / "service").iterdir(), *(ROOT / "tests" / "e2e").iterdir()]
    tests = "\n".join(file.read_text() for file in files if file.is_file())
    assert [reason for reason in sorted(reasons_of_the_contract()) if reason not in tests] == []
