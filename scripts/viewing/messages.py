"""What a page says in words: errors as messages, and texts from files as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import InputError


def plain(text: str) -> str:
    r"""Return a text that Markdown shows as it is.

    >>> print(plain("runs/*_a_*"))
    runs/\*\_a\_\*
    """
    return re.sub(r"([\\`*_{}\[\]<>#$:~|!^])", r"\\\1", text)


@contextmanager
def saying() -> Iterator[None]:
    """Show an InputError of the block as a message."""
    import streamlit as st

    try:
        yield
    except InputError as error:
        st.error(plain(str(error)), icon=":material/error:")
