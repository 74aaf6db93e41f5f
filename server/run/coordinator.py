"""The async shell around an engine: feeds it events, and runs the effects that it answers with.

The only place where round state changes. Quick effects run at once, on the event loop; slow ones
one after the other, in `effects`. Knows nothing about gRPC.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from common.algorithms import Algorithm
from common.logs import get_logger
from server.engine import events
from server.engine.engine import Engine, RunView, Standing
from server.engine.events import Phase
from server.run.assignments import Assignments, Work
from server.run.clock import RunningClock
from server.run.effects import Effects
from server.run.evaluation import Evaluator
from server.run.ledger import RoundLedger, committed
from server.run.offers import Offers
from server.run.sessions import Activity, Sessions
from server.run.settings import RunSettings
from server.run.status import RunStatus
from server.run.uploads import Received, Spool
from server.storage.checkpoints import Record, RunDirectory
from server.storage.columns import Row
from server.storage.metrics import Sinks

_ACTIVITIES = {
    None: Activity.WAITING,
    Work.TRAIN: Activity.TRAINING,
    Work.EVALUATE: Activity.EVALUATING,
}


class Coordinator:
    """Runs the rounds of one run; everything happens on one event loop.

    Args:
        engine: decides what follows from what happens.
        standing: where the run stands. With a cohort, that attempt was under way before a
            restart: it is durable, and its accepted updates are in the spool.
        record: the last committed round.
        rows: the committed rows so far.
        evaluator: None when the server never evaluates.
    """

    def __init__(
        self,
        *,
        settings: RunSettings,
        engine: Engine[Any],
        standing: Standing,
        record: Record,
        rows: list[Row],
        algorithm: Algorithm,
        directory: RunDirectory,
        spool: Spool,
        sinks: Sinks,
        evaluator: Evaluator | None,
        lease: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.directory = directory
        self.spool = spool
        self._engine = engine
        self._state, first = engine.resume(standing)
        self._look_seconds = min(1.0, lease / 4)
        self.clock = RunningClock(clock, 2 * self._look_seconds)
        self.assignments = Assignments(self._work_changed)
        self.sessions = Sessions(
            lease, self.clock, self._client_joined, self._client_left, settings.limits.max_clients
        )
        self.sessions.await_clients(standing.live)
        log = get_logger().bind(run_id=settings.run_id)
        recovered = None
        if standing.cohort:  # It may have all its updates, and not begin again.
            recovered = (standing.round, standing.attempt)
            log = log.bind(round=standing.round, attempt=standing.attempt)
        self.status = RunStatus(
            engine.view(self._state),
            RoundLedger(self.clock(), len(standing.live)),
            map(committed, rows),
            log,
        )
        self.offers = Offers(settings, algorithm, directory, record)
        self._effects = Effects(
            settings=settings,
            status=self.status,
            offers=self.offers,
            spool=spool,
            sessions=self.sessions,
            assignments=self.assignments,
            algorithm=algorithm,
            directory=directory,
            sinks=sinks,
            evaluator=evaluator,
            clock=self.clock,
            recovered=recovered,
        )
        self._queue: asyncio.Queue[events.Effect | OSError] = asyncio.Queue()
        self._ordering = asyncio.Lock()
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_at = 0.0
        # Before any client is heard, and so on the event loop: a deadline may begin.
        self._start(self.status.view, first)

    # ------------------------------------------------------------- for the app

    async def run(self) -> None:
        """Run rounds until the engine finishes.

        Raises:
            RunFailed: an accepted update was damaged before it was counted.
            OSError: the run directory can't be written.
            TensorError: a file in it was damaged while in use.
        """
        if self.status.view.phase is Phase.SELECTING:
            self.status.log.info("waiting for clients", needed=self.status.view.min_clients)
        expiry = asyncio.create_task(self._expire_sessions())
        try:
            while not self.status.ended:
                await self._run_next()
        finally:
            expiry.cancel()
            if self._deadline is not None:
                self._deadline.cancel()

    async def _run_next(self) -> None:
        effect = await self._queue.get()
        if isinstance(effect, OSError):
            raise effect
        event = await self._effects.run(effect)
        if event is not None:
            self.apply(event)
        if isinstance(effect, events.Finish):
            self.status.ended = True
            self.status.changed()
            self.sessions.wake_all()

    def shut_down(self) -> None:
        """Let every waiting poll and watcher know that the server is going."""
        self.status.shutting_down = True
        self._effects.trace.interrupt()
        self.status.changed()
        self.sessions.wake_all()

    @property
    def failure(self) -> str | None:
        """Why the run failed, and what to change if its model had become worthless."""
        failure, worthless = self.status.view.failure, self._effects.worthless()
        return f"{failure}; {worthless}" if failure and worthless else failure

    @property
    def time_remaining(self) -> float:
        """Seconds until the current phase's deadline, at least 0."""
        return max(0.0, self._deadline_at - self.clock())

    # ----------------------------------------------------------------- for rpc

    async def stop(self) -> None:
        """Make the current round the last one, durably before it is so.

        Raises:
            OSError: the order can't be written; the run goes on.
        """
        async with self._ordering:
            if not self.status.view.stopping:
                await asyncio.to_thread(self.directory.order_stop, self.status.view.rounds)
                self.apply(events.StopRequested())

    def apply(
        self, event: events.Event, received: Received | None = None
    ) -> tuple[events.Effect, ...]:
        """Take an event, of a received update or another, through the table; run its effects.

        Returns:
            the effects, of which slow ones have only been started.
        """
        before = self._state
        self._state, effects = self._engine.transition(before, event)
        if self._state is not before or effects:
            seen, self.status.view = self.status.view, self._engine.view(self._state)
            self._start(seen, effects, received)
        return effects

    def fail(self, error: OSError) -> None:
        """End the run: the engine counts what the disk may not hold.

        Only a restart, which counts what it finds there, puts that right.
        """
        self._queue.put_nowait(error)

    # ---------------------------------------------------------------- sessions

    def _client_joined(self, client_id: str) -> None:
        self.status.ledger.partitions[client_id] = self.sessions.by_client[client_id].partition
        assignment = self.assignments.of_client(client_id)
        self._work_changed(client_id, assignment.work if assignment else None)
        self.apply(events.ClientJoined(client_id))
        if self.status.view.phase is Phase.SELECTING:
            needed = self.status.view.min_clients
            self.status.log.info(
                "waiting for clients", live=len(self.status.view.live), needed=needed
            )

    def _client_left(self, client_id: str) -> None:
        self.status.ledger.left[client_id] = self.clock()
        self.apply(events.ClientLeft(client_id))

    def _work_changed(self, client_id: str, work: Work | None) -> None:
        session = self.sessions.by_client.get(client_id)
        if session is not None:
            session.turn_to(_ACTIVITIES[work])

    async def _expire_sessions(self) -> None:
        stood = self.clock.stood
        while True:
            await asyncio.sleep(self._look_seconds)
            self.clock()
            if self.clock.stood > stood:
                seconds = round(self.clock.stood - stood, 1)
                self.status.log.warning(
                    "the server stood still; that time does not count", seconds=seconds
                )
                stood = self.clock.stood
            for client_id in self.sessions.expire():
                self.status.log.warning(
                    "client lost", client=client_id, lease_seconds=self.sessions.lease
                )

    # ----------------------------------------------------------------- effects

    def _start(
        self,
        before: RunView,
        effects: tuple[events.Effect, ...],
        received: Received | None = None,
    ) -> None:
        for effect in effects:
            match effect:
                case events.StartDeadline(seconds, event):
                    self._start_deadline(seconds, event)
                case events.KeepUpdate() if received:
                    self._accept(received)
                case events.Abandon():
                    self.status.history.append(self.status.ledger.summary(before, "abandoned"))
                    self._stop_collecting()
                    self._queue.put_nowait(effect)
                case events.Aggregate():
                    self._stop_collecting()
                    self._queue.put_nowait(effect)
                case _:
                    self._queue.put_nowait(effect)
        self.status.changed()

    def _accept(self, received: Received) -> None:
        self.spool.accept(received)
        update = received.update
        client_id = update.client_id
        self.assignments.finish(update.task_token)
        session = self.sessions.by_client.get(client_id)
        if session is not None:
            session.trained = (update.num_examples, {**update.metrics})
        self.status.ledger.report_seconds[client_id] = self.clock() - self.status.ledger.began
        self.status.log.info(
            "update accepted",
            client=client_id,
            accepted=len(self.status.view.accepted),
            goal=self.status.view.goal,
            examples=update.num_examples,
        )

    def _start_deadline(self, seconds: float, event: events.DeadlinePassed) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline_at = self.clock() + seconds
        self._wait_for_deadline(event)

    def _wait_for_deadline(self, event: events.DeadlinePassed) -> None:
        if self.time_remaining == 0:
            self.apply(event)
            return
        # The loop counts time in which the run's clock stands still.
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self.time_remaining, self._wait_for_deadline, event)

    def _stop_collecting(self) -> None:
        self.spool.close()
        self.assignments.replace(())
        self.status.ledger.collected = self.clock()
