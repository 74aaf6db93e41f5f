"""Names, sizes and durations as a person reads them. Knows nothing about what they are of."""

import re


def natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts names with numbers in them as a person would.

    >>> sorted(["client-10", "client-2"], key=natural)
    ['client-2', 'client-10']
    """
    # A number, before what is none; \d alone has digits that int doesn't read.
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(int(part), "") if "0" <= part[0] <= "9" else (-1, part) for part in parts]


def size(count: float | None) -> str:
    """Return bytes in the decimal unit that reads best.

    >>> [size(n) for n in (None, 0, 999, 1000, 79_728_000)]
    ['–', '0 B', '999 B', '1.0 kB', '79.7 MB']
    """
    if count is None:
        return "–"
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.0f} B" if units[0] == "B" else f"{count:,.1f} {units[0]}"


def duration(seconds: float | None) -> str:
    """Return a time in the units that read best.

    >>> [duration(s) for s in (None, 0.25, 9, 61, 660, 7322)]
    ['–', '0.2 s', '9 s', '1 min 1 s', '11 min 0 s', '2 h 2 min']
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def decimal(value: float | None, places: int = 4) -> str | None:
    """Return a number with so many places; None stays None."""
    return None if value is None else f"{value:,.{places}f}"
