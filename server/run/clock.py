"""The run's clock, which stands still while the server does.

Knows nothing about what is timed.
"""

from collections.abc import Callable


class RunningClock:
    """Seconds that the process ran, never going back.

    Whoever times something looks at it often. A long gap between two looks means that the process
    did not run: it was suspended, or its machine was paused. No client can be blamed for that
    time, so it does not count.

    Args:
        clock: seconds, never going back.
        longest: gap between two looks of a process that runs; a longer one does not count.
    """

    def __init__(self, clock: Callable[[], float], longest: float) -> None:
        self._clock = clock
        self._longest = longest
        self._seen = clock()
        # Seconds that did not count.
        self.stood = 0.0

    def __call__(self) -> float:
        """Return the time, and take it as a look.

        >>> clock = RunningClock(iter([100.0, 101.0, 102.0, 162.0, 163.0]).__next__, longest=2.0)
        >>> [clock(), clock(), clock(), clock(), clock.stood]
        [101.0, 102.0, 102.0, 103.0, 60.0]
        """
        now = self._clock()
        if now - self._seen > self._longest:
            self.stood += now - self._seen
        self._seen = now
        return now - self.stood
