"""Ctrl-C reaches the processes under test, also where the suite runs in the background."""

import signal

import pytest
import structlog

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logs_go_where_they_went():
    """A command that ran in this process has set them up for itself."""
    yield
    structlog.reset_defaults()
