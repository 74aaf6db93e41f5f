"""Settings from flags, environment, file and saved values, on options of the test's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from cyclopts import Parameter

from common.config import parse_options
from common.errors import InputError
from common.option_types import finite


@Parameter(name="*", negative=())
@dataclass(frozen=True, kw_only=True)
class Options:
    """A few options."""

    count: int = 1
    "How many."
    learning_rate: Annotated[float, Parameter(validator=finite)] = 0.5
    "How fast."
    fast: bool = False
    "Hurry."
    name: str | None = None
    "What for."
    place: Path | None = None
    "Where."
    config: Path | None = None
    "TOML file."


def parse(*argv, saved=None):
    return parse_options(Options, "program", "Does things.", argv, saved)


def refused(*argv, saved=None):
    with pytest.raises(InputError) as caught:
        parse(*argv, saved=saved)
    return str(caught.value)


def test_what_is_not_given_has_its_default():
    assert parse() == Options()


def test_flags_go_before_environment_before_file_before_saved_values(tmp_path, monkeypatch):
    file = tmp_path / "options.toml"
    file.write_text("learning-rate = 3.0\ncount = 3\nname = 'file'\n")
    monkeypatch.setenv("FOLKMOOT_LEARNING_RATE", "2.0")
    monkeypatch.setenv("FOLKMOOT_COUNT", "2")
    saved = {"learning_rate": 4.0, "count": 4, "name": "saved", "fast": True}
    found = parse("--config", str(file), "--learning-rate", "1.0", saved=saved)
    assert (found.learning_rate, found.count, found.name, found.fast) == (1.0, 2, "file", True)


def test_the_file_may_be_named_by_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "options.toml"
    file.write_text("learning_rate = 3.0\n")
    monkeypatch.setenv("FOLKMOOT_CONFIG", str(file))
    assert parse().learning_rate == 3.0


def test_saved_nothing_leaves_the_default():
    assert parse(saved={"learning_rate": None, "name": None}) == Options()


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--cuont", "1"], "--cuont"),
        (["--count", "one"], "--count"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--learning-rate", "inf"], "--learning-rate"),
        (["--count", "1", "--count", "2"], "--count"),
        (["--no-fast"], "--no-fast"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_flag_is_an_error_of_one_line_that_names_it(argv, named):
    message = refused(*argv)
    assert named in message
    assert "\n" not in message


def test_a_wrong_variable_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv("FOLKMOOT_COUNT", "one")
    assert "FOLKMOOT_COUNT" in refused()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("FOLKMOOT_COUNTT", "do you mean FOLKMOOT_COUNT?"),
        ("FOLKMOOT_PARTITON", "do you mean FOLKMOOT_PARTITION?"),
        ("FOLKMOOT_XYZ", "unset it"),
    ],
)
def test_a_mistyped_variable_is_refused_with_what_may_be_meant(monkeypatch, name, remedy):
    monkeypatch.setenv(name, "1")
    assert refused() == f"{name}: unknown option; {remedy}"


def test_variables_of_other_programs_are_passed_over(monkeypatch):
    monkeypatch.setenv("FOLKMOOT_ROUNDS", "20")
    monkeypatch.setenv("FOLKMOOT_PARTITION", "0-3")
    assert parse() == Options()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"cuont = 1", "cuont"),
        (b"count = 'one'", "count"),
        (b"count = = 1", "--config"),
        (b"\xff\xfe", "--config"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_file_and_the_line_or_flag(
    tmp_path, content, named
):
    file = tmp_path / "options.toml"
    file.write_bytes(content)
    message = refused("--config", str(file))
    assert str(file) in message
    assert named in message


def test_a_missing_file_is_an_error_that_names_the_flag(tmp_path):
    path = tmp_path / "missing.toml"
    assert refused("--config", str(path)).startswith(f"--config: can't read {path}")


def test_a_folder_in_place_of_the_file_is_an_error_that_names_the_flag(tmp_path):
    assert refused("--config", str(tmp_path)).startswith(f"--config: can't read {tmp_path}")


def test_a_saved_value_of_an_unknown_name_is_an_error_that_names_it():
    assert "unheard_of" in refused(saved={"unheard_of": 1}).replace("-", "_")


def test_help_is_shown_and_nothing_is_parsed(capsys):
    assert parse("--help") is None
    shown = capsys.readouterr().out
    assert "Does things." in shown
    assert "--learning-rate" in shown


def test_a_relative_path_in_the_file_begins_at_its_folder_and_others_where_one_is(
    tmp_path, monkeypatch
):
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "options.toml"
    file.write_text("place = 'near.pem'\nname = 'near.pem'\n")
    monkeypatch.chdir(tmp_path)
    for named in (str(file), "there/options.toml"):
        found = parse("--config", named)
        assert (found.place.resolve(), found.name) == (file.parent / "near.pem", "near.pem")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "there")
    linked = parse("--config", "elsewhere/options.toml").place
    assert linked.resolve() == file.parent / "near.pem"
    assert parse("--config", str(file), "--place", "mine.pem").place == Path("mine.pem")
    file.write_text("place = '/far.pem'\n")
    assert parse("--config", str(file)).place == Path("/far.pem")
