"""Names as a person sorts them. Knows nothing about what they are of."""

import re


def natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts names with numbers in them as a person would.

    >>> sorted(["client-10", "client-2"], key=natural)
    ['client-2', 'client-10']
    """
    # A number, before what is none; \d alone has digits that int doesn't read.
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(int(part), "") if "0" <= part[0] <= "9" else (-1, part) for part in parts]
