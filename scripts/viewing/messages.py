"""What a page says in words: errors as messages, and texts from files as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from common.commands import command
from common.errors import InputError, UnnamedTask


def plain(text: str) -> str:
    r"""Return a text that Markdown shows as it is.

    >>> print(plain("runs/*_a_*"))
    runs/\*\_a\_\*
    """
    return re.sub(r"([\\`*_{}\[\]<>#$:~|!^])", r"\\\1", text)


def said(error: InputError) -> str:
    """Return what a page says of an error: in Markdown, with what can be done about it here."""
    if isinstance(error, UnnamedTask):
        return plain(
            f"The run's task is {error.task}, whose code would run here. If you trust it, start "
            f"{command('dashboard')} again with --task {error.task}."
        )
    return plain(str(error))


@contextmanager
def saying() -> Iterator[None]:
    """Show an InputError of the block as a message."""
    import streamlit as st

    try:
        yield
    except UnnamedTask as error:
        # Nothing is wrong: the person has to decide.
        st.info(said(error), icon=":material/info:")
    except InputError as error:
        st.error(said(error), icon=":material/error:")
