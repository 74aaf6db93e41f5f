"""The slow effects of the engine: each runs to its end, and its event goes back to the shell.

They begin a round, aggregate, evaluate, commit and abandon, one after the other.
"""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from common.algorithms import Algorithm, CannotAggregate, Contribution
from common.errors import FolkmootError, RunFailed
from common.loading import describe
from server.aggregation.fold import DamagedUpdate, Folded, SpooledUpdate, fold
from server.aggregation.weighting import capped_weights, outliers
from server.engine import events
from server.engine.early_stopping import should_stop, worthless
from server.engine.events import Phase
from server.run.assignments import Assignment, Assignments, Work, task_token
from server.run.clock import RunningClock
from server.run.evaluation import Evaluator
from server.run.ledger import RoundLedger, committed, headline
from server.run.offers import Offers
from server.run.round_trace import RoundTrace
from server.run.sessions import Sessions
from server.run.settings import RunSettings
from server.run.status import RunStatus
from server.run.uploads import Spool
from server.storage.checkpoints import Cohort, ModelFile, Record, RunDirectory
from server.storage.metrics import Sinks, by_class, finite_only


class Candidate(NamedTuple):
    """What the updates were made to: the new model, and what else came of the fold."""

    model: ModelFile
    folded: Folded


@dataclass(kw_only=True)
class Effects:
    """Runs effects, which know nothing of the engine.

    Args:
        recovered: round and attempt whose cohort is durable already.
        evaluator: None when the server never evaluates.
    """

    settings: RunSettings
    status: RunStatus
    offers: Offers
    spool: Spool
    sessions: Sessions
    assignments: Assignments
    algorithm: Algorithm
    directory: RunDirectory
    sinks: Sinks
    evaluator: Evaluator | None
    clock: RunningClock
    recovered: tuple[int, int] | None

    def __post_init__(self) -> None:
        self._warned = self.worthless() is not None
        self.trace = RoundTrace(self.settings.run_id)

    async def run(self, effect: events.Effect) -> events.Event | None:
        """Run an effect to its end; return what came of it, if the engine waits for that.

        Raises:
            RunFailed: an accepted update was damaged before it was counted.
            OSError: the run directory can't be written.
            TensorError: a file in it was damaged while in use.
        """
        match effect:
            case events.BeginRound(number, attempt):
                await self._begin_round(number, attempt)
            case events.Aggregate():
                with self.trace.span("aggregate"):
                    return self._reject_outliers() or await self._aggregate()
            case events.Evaluate(on_server, clients, Candidate() as candidate):
                return await self._evaluate(on_server, clients, candidate)
            case events.Commit(Candidate() as candidate):
                with self.trace.span("commit"):
                    stop = await self._commit(candidate)
                self.trace.end(self.status.history[-1])
                return events.Committed(stop)
            case events.Abandon(number, _, reason):
                await self._abandon(number, reason)
                self.trace.end(self.status.history[-1])
            case events.Finish():
                await asyncio.to_thread(self.directory.remove_spare)
                await self._remove_old_rounds()
        return None

    async def _begin_round(self, number: int, attempt: int) -> None:
        view, began = self.status.view, (number, attempt, Phase.REPORTING)
        if began != (view.round, view.attempt, view.phase):
            return
        held = {client: found.partition for client, found in self.sessions.by_client.items()}
        self.status.ledger = RoundLedger(
            self.clock(), len(view.live), self.status.ledger.traffic, held
        )
        if (number, attempt) != self.recovered:
            cohort = Cohort(
                round=number,
                attempt=attempt,
                cohort=view.cohort,
                goal=view.goal,
                live=tuple(sorted(view.live)),
            )
            await asyncio.to_thread(self.directory.begin_attempt, cohort)
            folder, spares = self.directory.updates_folder(number), self.directory.spares()
            self.spool.begin(folder, self.offers.newest_model.path, spares)
        view = self.status.view
        if began != (view.round, view.attempt, view.phase):
            return
        self.trace.begin(view)
        # Those who are lost, too: they may come back in time.
        workers = sorted(view.pending | view.lost)
        self.status.log = self.status.log.bind(round=number, attempt=attempt)
        self.status.log.info(
            "round began",
            cohort=len(view.cohort),
            goal=view.goal,
            live=len(view.live),
        )
        self._assign(workers, Work.TRAIN, self.offers.record.round)
        # Deleting large files takes a while; the cohort is busy meanwhile.
        await self._remove_old_rounds()

    async def _remove_old_rounds(self) -> None:
        keep = self.settings.keep_rounds
        await asyncio.to_thread(self.directory.remove_old, self.offers.record.round, keep)

    def _assign(self, clients: Iterable[str], work: Work, version: int) -> None:
        number, attempt = self.status.view.round, self.status.view.attempt
        run_id = self.settings.run_id
        self.assignments.replace(
            Assignment(
                task_token(run_id, number, attempt, client, work),
                client,
                number,
                attempt,
                work,
                version,
                self.trace.parent,
            )
            for client in clients
        )
        self.sessions.wake(clients)

    async def _aggregate(self) -> events.Event:
        number, ledger = self.status.view.round, self.status.ledger
        updates = [self.spool.accepted[client] for client in sorted(self.status.view.accepted)]
        weights = capped_weights([u.num_examples for u in updates], self.settings.max_share)
        spooled = [
            SpooledUpdate(
                self.spool.path_of(update),
                update.client_id,
                update.digest,
                Contribution(weight, update.scalars),
            )
            for update, weight in zip(updates, weights, strict=True)
        ]
        last, directory = self.offers.record.round, self.directory
        try:
            folded = await asyncio.to_thread(
                fold,
                directory.model_path(last),
                {name: directory.state_path(last, name) for name in self.offers.record.state},
                self.offers.record.notes,
                spooled,
                self.algorithm,
                self.settings.roles.trained,
                self.spool.encoding,
                directory.model_path(number),
                {name: directory.state_path(number, name) for name in self.algorithm.state_names},
            )
        except DamagedUpdate as error:
            raise RunFailed(f"{error}; go on with --resume, and it is trained again") from error
        except CannotAggregate as error:
            return events.AggregationFailed(str(error))
        except (FolkmootError, OSError):
            raise
        except Exception as error:  # the algorithm's own code, which may raise anything
            raise RunFailed(f"--strategy: {describe(error)}") from error
        clients = (update.client_id for update in updates)
        ledger.shares = dict(zip(clients, folded.shares, strict=True))
        ledger.aggregated = self.clock()
        model = ModelFile(number, directory.model_path(number), folded.model)
        return events.Aggregated(Candidate(model, folded))

    def _reject_outliers(self) -> events.UpdatesRejected | None:
        """Say which updates are too long for a mean, unless they are left out already.

        Of the durable records alone, so that a resumed run decides as this one does.
        """
        ratio, updates = self.settings.max_norm_ratio, self.spool.accepted
        found = outliers({client: update.norm for client, update in updates.items()}, ratio)
        if not found.clients & self.status.view.accepted:
            return None
        for client in sorted(found.clients):
            self.status.log.warning(
                "update left out: it is far longer than the others (--max-norm-ratio)",
                client=client,
                norm=updates[client].norm,
                median=found.median,
                max_norm_ratio=ratio,
            )
        self.status.ledger.refused |= found.clients
        reason = (
            f"{len(found.clients)} updates are longer than {ratio:g} times the median "
            "(--max-norm-ratio)"
        )
        return events.UpdatesRejected(found.clients, reason)

    async def _evaluate(
        self, on_server: bool, clients: tuple[str, ...], candidate: Candidate
    ) -> events.ServerEvaluated | None:
        ledger, model = self.status.ledger, candidate.model
        ledger.evaluating_since = self.clock()
        self.offers.offer(model)
        self._assign(clients, Work.EVALUATE, model.version)
        if not on_server or self.evaluator is None:
            return None
        with self.trace.span("evaluate"):
            found = await asyncio.to_thread(self.evaluator.evaluate, model.path)
        ledger.global_metrics = finite_only(found.metrics)
        ledger.confusion = found.confusion
        if len(ledger.global_metrics) < len(found.metrics):
            self.status.log.warning("evaluation is not finite")
        ledger.loss_is_finite = math.isfinite(found.metrics.get("loss", 0.0))
        return events.ServerEvaluated()

    async def _commit(self, candidate: Candidate) -> bool:
        """Make the candidate the run's model; say whether that is reason to end the run."""
        view, ledger, updates = self.status.view, self.status.ledger, self.spool.accepted
        before, settings, digest = self.offers.record, self.settings, candidate.model.digest
        self.assignments.replace(())
        row, progress = ledger.row(view, updates, digest, before.progress, self.clock())
        clients = ledger.client_rows(view, updates)
        evaluation = by_class(view.round, ledger.confusion) if ledger.confusion else None
        record = Record(
            round=view.round,
            model=digest,
            state=candidate.folded.state,
            notes=candidate.folded.notes,
            contributed={
                **before.contributed,
                **dict.fromkeys(sorted(view.accepted), view.round),
            },
            live=tuple(sorted(view.live)),
            progress=progress,
            row=row,
            clients=tuple(clients),
            evaluation=evaluation,
            lines=self.sinks.counts_with(clients, evaluation),
        )
        began = self.clock()
        model = await asyncio.to_thread(self.directory.commit, record)
        row = replace(row, commit_seconds=round(self.clock() - began, 4))
        self.offers.commit(record, model)
        await asyncio.to_thread(self.sinks.append, row, clients, evaluation)
        self.status.history.append(committed(row))
        self.status.log.info("round committed", **headline(row))
        self._warn_if_worthless()
        evaluated = any(count for count, _ in ledger.evaluations.values())
        if settings.target_accuracy is not None and row.accuracy is None and evaluated:
            self.status.log.warning(
                "--target-accuracy has no effect: the clients' evaluation has no accuracy"
            )
        return should_stop(progress, row.accuracy, settings.target_accuracy, settings.patience)

    def worthless(self) -> str | None:
        """Return why the model is worthless, and what to change; None if it is not."""
        diverging = bool(self.status.ledger.diverged)
        why = worthless(self.offers.record.progress, self.settings.patience, diverging)
        if why is None:
            return None
        ratio = self.settings.max_norm_ratio
        longest = f"below {ratio:g}" if ratio else "above 0, where the strategy takes one"
        return f"{why}; start again with a smaller --lr, or with a --max-norm-ratio {longest}"

    def _warn_if_worthless(self) -> None:
        """Log it once, for a resumed run too."""
        why = self.worthless()
        if why is not None and not self._warned:
            self.status.log.warning(why, best_round=self.offers.record.progress.best_round)
            self._warned = True

    async def _abandon(self, number: int, reason: str) -> None:
        self.status.log.warning("round abandoned", reason=reason)
        self._warn_if_worthless()
        await asyncio.to_thread(self.directory.abandon_attempt, number)
