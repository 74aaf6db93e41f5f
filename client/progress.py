"""The progress bar of local steps, on a terminal; elsewhere nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StepProgress:
    """Draws one bar at a time: one client of a process trains at a time."""

    @contextmanager
    def of(self, client_id: str, round_number: int) -> Iterator[Callable[[int, int], None]]:
        """Show a bar for one client's training; yields what to call after each step."""
        if not sys.stderr.isatty():
            yield lambda _done, _total: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"{client_id} round {round_number}", total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
