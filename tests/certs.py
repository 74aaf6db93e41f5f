"""Certificates for the tests, made by the project's own command; some of them no good."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

from scripts import make_certs

HOST = "127.0.0.1"


def make(folder: Path, clients: int = 2) -> Path:
    """Return a folder with a CA and what it signed."""
    make_certs.new(host=[HOST], clients=clients, folder=folder)
    return folder


def expired_client(folder: Path, name: str) -> Path:
    """Return the folder of a client whose certificate was valid until yesterday."""

    class Past(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.now(UTC) - timedelta(days=3)

    with patch.object(make_certs, "datetime", Past):
        make_certs.client(name, folder=folder, days=1)
    return folder / "clients" / name
