"""URLs that may hold a user's name and password, which belong in no file and no log."""

from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit


class Credentials(NamedTuple):
    """A name, and a password, which may be empty."""

    user: str
    password: str


def without_credentials(url: str) -> str:
    """Return a URL without the name and password in it.

    >>> without_credentials("https://ann:secret@example.org:5000/mlflow")
    'https://example.org:5000/mlflow'
    >>> without_credentials("sqlite:///runs/mlflow.db")
    'sqlite:///runs/mlflow.db'
    """
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def credentials(url: str) -> Credentials | None:
    """Return the name and password in a URL; None without.

    >>> credentials("https://ann:p%40ss@example.org")
    Credentials(user='ann', password='p@ss')
    """
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return None
    return Credentials(unquote(parts.username or ""), unquote(parts.password or ""))
