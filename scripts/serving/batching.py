"""Answers examples of concurrent requests in common batches: one run of the model for many.

While a batch is computed the next one gathers. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from common.errors import InputError
from scripts.serving.model import Array


class TooBusy(Exception):
    """More examples wait than may."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How examples are gathered."""

    # Examples in a run of the model; 1 runs it for each alone.
    most: int = 32
    # Seconds that the first of a batch waits for others.
    wait: float = 0.002


class _Waiting(NamedTuple):
    example: Array
    since: float
    answer: asyncio.Future[Array]


class Batcher:
    """Gathers examples, inside `running`.

    Args:
        run: returns a row for each example of a batch; called in a thread of its own, and raises
            InputError where it can't take one of the examples.
        batching: how they are gathered.
        most_waiting: examples that may wait.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Array]], Array],
        batching: Batching,
        most_waiting: int = 4096,
    ) -> None:
        self._run = run
        self._batching = batching
        self._most_waiting = most_waiting
        self._waiting: asyncio.Queue[_Waiting]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer, until the context ends."""
        self._waiting = asyncio.Queue()
        with ThreadPoolExecutor(1, "model") as thread:
            task = asyncio.create_task(self._answer(thread))
            try:
                yield
            finally:
                task.cancel()

    async def rows(self, examples: Sequence[Array]) -> list[Array]:
        """Return the row of each example.

        Raises:
            InputError: the model can't be run on one of them.
            TooBusy: too many wait already.
        """
        if self._waiting.qsize() + len(examples) > self._most_waiting:
            raise TooBusy
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Array]] = [loop.create_future() for _ in examples]
        for example, answer in zip(examples, answers, strict=True):
            self._waiting.put_nowait(_Waiting(example, loop.time(), answer))
        return await asyncio.gather(*answers)

    async def _answer(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather()
            found = await loop.run_in_executor(thread, self._try, [w.example for w in batch])
            for waiting, answer in zip(batch, found, strict=True):
                if waiting.answer.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)

    async def _gather(self) -> list[_Waiting]:
        """Return the next batch: full, or as old as may be."""
        batch = [await self._waiting.get()]
        until = batch[0].since + self._batching.wait
        try:
            async with asyncio.timeout_at(until):
                while len(batch) < self._batching.most:
                    batch.append(await self._waiting.get())
        except TimeoutError:
            pass
        while len(batch) < self._batching.most and not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
        return batch

    def _try(self, examples: Sequence[Array]) -> Sequence[Array | Exception]:
        """Return the answers; one example that can't be answered must not spoil the others'."""
        try:
            return list(self._run(examples))
        except InputError as error:
            if len(examples) == 1:
                return [error]
            return [answer for example in examples for answer in self._try([example])]
        # Nobody would wait for the task that gathers: its error belongs to those who asked.
        except Exception as error:  # noqa: BLE001
            return [error] * len(examples)
