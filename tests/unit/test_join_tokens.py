"""Join tokens, on a clock that the test turns, and through restarts of the server."""

import json
from types import SimpleNamespace

import pytest

from common.errors import CheckpointError, RequestError
from server.auth.join_tokens import JoinTokens

DAY = 86_400.0


@pytest.fixture
def place(tmp_path):
    """Return a function that reads the tokens as a restarted server would, and their clock."""
    clock = SimpleNamespace(now=1e9)
    path = tmp_path / "join_tokens.json"
    return SimpleNamespace(open=lambda: JoinTokens(path, lambda: clock.now), clock=clock, path=path)


def refused(tokens, text, client):
    with pytest.raises(RequestError) as caught:
        tokens.admit(text, client)
    return caught.value.reason, str(caught.value)


def test_a_token_admits_its_clients_and_those_again_after_a_restart_and_its_time(place):
    secret, token = place.open().create(2, DAY)
    assert place.open().admit(secret, "a") == token.token_id
    place.clock.now += DAY + 1
    assert place.open().admit(secret, "a") == token.token_id
    reason, why = refused(place.open(), secret, "b")
    assert (reason, "expired" in why) == ("JOIN_TOKEN_INVALID", True)


def test_a_token_admits_no_more_than_it_may(place):
    tokens = place.open()
    secret, _ = tokens.create(2, DAY)
    for client in ("a", "b", "a", "b"):
        tokens.admit(secret, client)
    assert "as many as it may" in refused(tokens, secret, "c")[1]


def test_a_revoked_token_admits_nobody_any_more(place):
    secret, token = place.open().create(2, DAY)
    place.open().admit(secret, "a")
    assert place.open().revoke(token.token_id).client_ids == ("a",)
    for client in ("a", "b"):
        assert "revoked" in refused(place.open(), secret, client)[1]


def test_what_is_no_token_is_refused(place):
    tokens = place.open()
    secret, token = tokens.create(1, DAY)
    for text in (
        "",
        ".",
        token.token_id,
        f"{token.token_id}.",
        secret[:-1],
        secret + "x",
        "\udcff",
    ):
        assert refused(tokens, text, "a")[0] == "JOIN_TOKEN_INVALID"
    with pytest.raises(RequestError, match="no such join token"):
        tokens.revoke("none")


def test_a_client_id_belongs_to_the_token_that_admitted_it_until_that_is_revoked(place):
    tokens = place.open()
    (first, kept), (second, _) = tokens.create(1, DAY), tokens.create(1, DAY)
    tokens.admit(first, "a")
    assert refused(tokens, second, "a")[0] == "CLIENT_ID_TAKEN"
    tokens.revoke(kept.token_id)
    assert tokens.admit(second, "a")


def test_the_file_holds_digests_and_no_secret(place):
    secret, token = place.open().create(1, DAY)
    text = place.path.read_text()
    assert secret.partition(".")[2] not in text
    assert token.digest in text


def test_a_damaged_file_is_an_error_that_names_it(place):
    place.open().create(1, DAY)
    value = json.loads(place.path.read_text())
    value["tokens"][0]["max_clients"] = 1000
    place.path.write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=r"join_tokens\.json is damaged; put back a copy"):
        place.open()
