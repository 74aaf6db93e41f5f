"""Sessions and their leases, on a clock that the test turns."""

import asyncio
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from common.errors import RequestError, Status
from server.auth.callers import Everyone
from server.run.limits import MAX_PULLS
from server.run.sessions import Sessions

LEASE = 10.0


def begin(most=100):
    """Return sessions, their clock (set `clock.now`), and the log of who came and went."""
    clock, log = SimpleNamespace(now=100.0), []
    sessions = Sessions(
        LEASE,
        lambda: clock.now,
        lambda client: log.append(("joined", client)),
        lambda client: log.append(("left", client)),
        most,
    )
    return sessions, clock, log


def reason_of(sessions, token):
    with pytest.raises(RequestError) as caught:
        sessions.get(token, Everyone())
    return caught.value.status, caught.value.reason


async def polling(session, seconds=60.0):
    """Return a poll that waits by now."""
    poll = asyncio.create_task(session.wait(seconds))
    await asyncio.sleep(0)
    return poll


async def is_woken(poll):
    await asyncio.wait({poll}, timeout=5)
    return poll.done()


def test_a_client_that_joins_is_told_of_once():
    sessions, _, log = begin()
    session = sessions.join("a", "process 1")
    assert sessions.join("a", "process 1") is session
    assert sessions.get(session.token, Everyone()) is session
    assert log == [("joined", "a")]
    assert len(sessions) == 1


def test_tokens_differ():
    sessions, _, _ = begin()
    assert len({sessions.join(str(index), "x").token for index in range(20)}) == 20


def test_a_newer_process_supersedes_the_older_and_the_client_stays():
    sessions, _, log = begin()
    older = sessions.join("a", "process 1")
    newer = sessions.join("a", "process 2")
    assert reason_of(sessions, older.token) == (Status.ABORTED, "SESSION_SUPERSEDED")
    assert sessions.get(newer.token, Everyone()) is newer
    sessions.leave(older.token, Everyone())
    assert len(sessions) == 1
    assert log == [("joined", "a")]


def test_a_superseded_process_stays_out_after_the_newer_one_left():
    sessions, _, _ = begin()
    older = sessions.join("a", "process 1")
    sessions.leave(sessions.join("a", "process 2").token, Everyone())
    assert reason_of(sessions, older.token) == (Status.ABORTED, "SESSION_SUPERSEDED")


def test_an_unknown_token_is_not_found():
    sessions, _, _ = begin()
    assert reason_of(sessions, "nonsense") == (Status.NOT_FOUND, "SESSION_UNKNOWN")


def test_a_session_without_a_sign_of_life_ends_with_its_lease():
    sessions, clock, log = begin()
    session = sessions.join("a", "process")
    clock.now += LEASE - 0.1
    assert sessions.expire() == []
    clock.now += 0.1
    assert sessions.expire() == ["a"]
    assert log == [("joined", "a"), ("left", "a")]
    assert reason_of(sessions, session.token) == (Status.NOT_FOUND, "SESSION_UNKNOWN")
    assert sessions.expire() == []


@pytest.mark.parametrize("sign", ["get", "join"])
def test_each_sign_of_life_renews_the_lease(sign):
    sessions, clock, _ = begin()
    session = sessions.join("a", "process")
    clock.now += LEASE - 1
    if sign == "get":
        sessions.get(session.token, Everyone())
    else:
        sessions.join("a", "process")
    clock.now += LEASE - 1
    assert sessions.expire() == []
    clock.now += 1
    assert sessions.expire() == ["a"]


def test_a_client_that_expired_may_join_again():
    sessions, clock, log = begin()
    older = sessions.join("a", "process")
    clock.now += LEASE
    sessions.expire()
    assert sessions.join("a", "process").token != older.token
    assert log == [("joined", "a"), ("left", "a"), ("joined", "a")]


def test_a_session_does_not_expire_while_its_poll_waits():
    async def scenario():
        sessions, clock, _ = begin()
        session = sessions.join("a", "process")
        poll = await polling(session)
        clock.now += 5 * LEASE
        assert sessions.expire() == []
        session.wake()
        await poll
        assert sessions.expire() == ["a"]

    asyncio.run(scenario())


def test_a_client_that_leaves_is_gone_and_its_poll_wakes():
    async def scenario():
        sessions, _, log = begin()
        session = sessions.join("a", "process")
        poll = await polling(session)
        sessions.leave(session.token, Everyone())
        sessions.leave(session.token, Everyone())
        assert await is_woken(poll)
        assert log == [("joined", "a"), ("left", "a")]
        assert len(sessions) == 0

    asyncio.run(scenario())


def test_the_poll_of_a_superseded_session_wakes():
    async def scenario():
        sessions, _, _ = begin()
        poll = await polling(sessions.join("a", "process 1"))
        sessions.join("a", "process 2")
        assert await is_woken(poll)

    asyncio.run(scenario())


def test_only_the_polls_of_the_clients_named_wake():
    async def scenario():
        sessions, _, _ = begin()
        first, second = [await polling(sessions.join(client, "x")) for client in ("a", "b")]
        sessions.wake(["a", "unknown"])
        assert await is_woken(first)
        assert not second.done()
        sessions.wake_all()
        assert await is_woken(second)

    asyncio.run(scenario())


def test_a_poll_ends_by_itself_after_its_time():
    async def scenario():
        session = begin()[0].join("a", "process")
        await session.wait(0.001)
        assert session.waiter is None

    asyncio.run(scenario())


def test_a_poll_that_is_cancelled_leaves_the_newer_one_waiting():
    async def scenario():
        session = begin()[0].join("a", "process")
        older, newer = await polling(session), await polling(session)
        older.cancel()
        assert await is_woken(older)
        session.wake()
        assert await is_woken(newer)

    asyncio.run(scenario())


def test_a_wake_without_a_poll_does_nothing():
    sessions, _, _ = begin()
    sessions.join("a", "process").wake()
    sessions.wake_all()
    sessions.wake(["a"])


def test_clients_of_before_a_restart_count_for_one_lease():
    sessions, clock, log = begin()
    sessions.await_clients(["a", "b"])
    assert len(sessions) == 0
    clock.now += LEASE - 1
    sessions.join("a", "process")
    assert sessions.expire() == []
    clock.now += 1
    assert sessions.expire() == ["b"]
    assert log == [("joined", "a"), ("left", "b")]


def test_there_are_no_more_sessions_than_may_be_and_each_is_free_again_at_its_end():
    sessions, _, _ = begin(most=2)
    first, _ = sessions.join("a", "one"), sessions.join("b", "one")
    with pytest.raises(RequestError) as caught:
        sessions.join("c", "one")
    assert (caught.value.status, caught.value.reason) == (
        Status.RESOURCE_EXHAUSTED,
        "CLIENTS_FULL",
    )
    assert caught.value.retry_after == LEASE
    # Those who are here come again, from new processes, too.
    assert sessions.join("a", "one") is first
    newer = sessions.join("a", "two")
    sessions.leave(newer.token, Everyone())
    sessions.join("c", "one")


def test_a_session_has_few_pulls_at_a_time():
    session = begin()[0].join("a", "one")
    with ExitStack() as stack:
        for _ in range(MAX_PULLS):
            stack.enter_context(session.pulling())
        with pytest.raises(RequestError, match="still open"), session.pulling():
            pass
    with session.pulling():
        pass
