"""Texts that others wrote, as a terminal may show them."""


def printable(text: str, most: int | None = None) -> str:
    r"""Return a text on one line, without what a terminal would obey, and not longer than `most`.

    >>> printable("done\x1b[2J\nnow", 9)
    'done\ufffd[2J …'
    """
    line = "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split())
    )
    return line if most is None or len(line) <= most else line[:most] + "…"


def counted(count: int, noun: str) -> str:
    """Return how many of something there are.

    >>> counted(1, "client"), counted(2_000, "client")
    ('1 client', '2,000 clients')
    """
    return f"{count:,} {noun}" + "s" * (count != 1)
