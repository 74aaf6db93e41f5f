"""The client's options, and the clients that one process holds."""

import re

import pytest

from client.options import ClientOptions, client_ids, partitions
from common.config import parse_options
from common.errors import InputError

FLAGS = """
--partition --server --task --strategy --data-dir --state-dir --client-id --device --threads
--max-wait --otlp-endpoint --config --tls-ca --tls-cert --tls-key --join-token-file --insecure
--help --version
"""


def parse(*argv):
    return parse_options(ClientOptions, "python -m client", "Trains.", argv)


def test_the_list_of_flags_is_frozen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert parse("--help") is None
    assert re.findall(r"^\W*(--[a-z0-9-]+)", capsys.readouterr().out, re.MULTILINE) == FLAGS.split()


@pytest.mark.parametrize(
    ("text", "found"), [("0", [0]), ("3", [3]), ("0-2", [0, 1, 2]), ("4-4", [4]), ("9-10", [9, 10])]
)
def test_a_number_is_one_partition_and_a_range_includes_both_ends(text, found):
    assert list(partitions(text)) == found


@pytest.mark.parametrize("text", ["", "-1", "1-", "-", "x", "1.5", "1-2-3", "1,2", " 1", "0x1"])
def test_what_is_neither_a_number_nor_a_range_is_refused(text):
    with pytest.raises(InputError, match=r"^--partition: .* neither a number .* nor a range"):
        partitions(text)


def test_an_empty_range_is_refused():
    with pytest.raises(InputError, match="--partition: the range 3-1 is empty"):
        partitions("3-1")


def test_a_partition_must_be_given():
    with pytest.raises(InputError, match="--partition: say which part"):
        client_ids(parse())


@pytest.mark.parametrize(
    ("argv", "ids"),
    [
        (["--partition", "3"], {3: "client-3"}),
        (["--partition", "3", "--client-id", "ward"], {3: "ward"}),
        (["--partition", "3-3", "--client-id", "ward"], {3: "ward"}),
        (["--partition", "1-2"], {1: "client-1", 2: "client-2"}),
        (["--partition", "1-2", "--client-id", "ward"], {1: "ward-1", 2: "ward-2"}),
    ],
)
def test_each_partition_has_a_client_of_its_own(argv, ids):
    assert client_ids(parse(*argv)) == ids


@pytest.mark.parametrize(
    "argv",
    [["--threads", "0"], ["--max-wait", "0"], ["--max-wait", "inf"], ["--device", "tpu"]],
)
def test_a_value_out_of_bounds_is_refused_by_the_name_of_its_flag(argv):
    with pytest.raises(InputError, match=argv[0]):
        parse(*argv)


@pytest.mark.parametrize("name", ["rounds", "mlflow_uri", "tls_client_ca", "test_data"])
def test_a_variable_of_another_program_is_none_of_the_clients(name, monkeypatch):
    monkeypatch.setenv(f"FOLKMOOT_{name.upper()}", "5")
    assert parse() == ClientOptions()


def test_options_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("FOLKMOOT_SERVER", "10.0.0.1:7070")
    monkeypatch.setenv("FOLKMOOT_MAX_WAIT", "5")
    assert parse("--max-wait", "7") == ClientOptions(server="10.0.0.1:7070", max_wait=7.0)
