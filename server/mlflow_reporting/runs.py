"""A run's MLflow runs: a parent for the training, and a child for each round.

Whatever is told twice is there once: runs are found by their tags, and what a round measured has
the same step, time and value each time. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)

from server.mlflow_reporting.history import History, Round, Status
from server.mlflow_reporting.system import Sample

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Of this run's parent: what tells it from all others, for good.
_ID = "folkmoot.tracking_id"
# Of a child: its round.
_ROUND = "folkmoot.round"
# Which pages MLflow shows of the experiment: those of models that are trained.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
# More of them, with their metrics, make an answer that takes long.
_PAGE = 100
_METRICS_IN_A_CALL = 1000


class Runs:
    """What MLflow has of a run; made anew whenever a call failed, since it may have arrived.

    Args:
        client: of the tracking server.
        experiment: its name; made if it isn't there.
        tracking_id: what the run is known by.
        history: what is told when MLflow does not know the run yet.
        revision: of the code, if known.

    Raises:
        MlflowException: the server does not answer, or refuses.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment: str,
        tracking_id: str,
        history: History,
        revision: str | None,
    ) -> None:
        self.client = client
        found = client.get_experiment_by_name(experiment)
        self.experiment_id = (
            found.experiment_id if found else client.create_experiment(experiment, tags=_KIND)
        )
        self._began = history.began
        parent = self._parent(tracking_id, history, revision)
        self.parent_id: str = parent.info.run_id
        # Children by round; those that MLflow has all of.
        self.children: dict[int, str] = {}
        self.complete: set[int] = set()
        self._find_children()

    def _parent(self, tracking_id: str, history: History, revision: str | None) -> Run:
        """Return the run of the training, as it is now; made if it isn't there."""
        parent = self._one_of(self._search(f"tags.`{_ID}` = '{tracking_id}'"))
        if parent is None:
            source = {MLFLOW_SOURCE_NAME: "python -m server", MLFLOW_SOURCE_TYPE: "LOCAL"}
            git = {MLFLOW_GIT_COMMIT: revision} if revision else {}
            parent = self.client.create_run(
                self.experiment_id,
                start_time=_milliseconds(history.began),
                tags={_ID: tracking_id, **source, **git},
                run_name=history.files.run_id,
            )
        parameters = [
            Param(name, value)
            for name, value in history.parameters().items()
            if name not in parent.data.params
        ]
        tags = [RunTag(name, value) for name, value in history.tags().items()]
        self.client.log_batch(parent.info.run_id, params=parameters, tags=tags)
        if history.status == "RUNNING" and parent.info.status != "RUNNING":
            self.client.update_run(parent.info.run_id, status="RUNNING")
        return parent

    def _find_children(self) -> None:
        by_round: dict[int, list[Run]] = {}
        for child in self._search(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.parent_id}'"):
            by_round.setdefault(int(child.data.tags[_ROUND]), []).append(child)
        for number, children in by_round.items():
            told = self._one_of(children)
            if told is not None:
                self.children[number] = told.info.run_id
                if told.info.status == "FINISHED":
                    self.complete.add(number)

    def _search(self, filter_string: str) -> list[Run]:
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], filter_string, max_results=_PAGE, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def _one_of(self, same: list[Run]) -> Run | None:
        """Return the run that was told of; delete its doubles.

        They come of calls that were given up, and tried again, before the server got to them.
        """
        if not same:
            return None
        told = max(same, key=lambda run: len(run.data.metrics) + len(run.data.params))
        for run in same:
            if run is not told:
                self.client.delete_run(run.info.run_id)
        return told

    def add_round(self, told: Round) -> None:
        """Tell of a round: its metrics are a step of the parent's, and a run of their own."""
        number, at = told.number, _milliseconds(told.ended)
        metrics = [Metric(name, value, at, number) for name, value in told.metrics.items()]
        self.client.log_batch(self.parent_id, metrics=metrics)
        child = self.children.get(number)
        if child is None:
            run = self.client.create_run(
                self.experiment_id,
                start_time=_milliseconds(told.began),
                tags={MLFLOW_PARENT_RUN_ID: self.parent_id, _ROUND: str(number)},
                run_name=f"round {number:05d}",
            )
            child = self.children[number] = run.info.run_id
        self.client.log_batch(child, metrics=metrics)
        # The last of it, which says that all of it is there.
        self.client.set_terminated(child, "FINISHED", at)
        self.complete.add(number)

    def add_system(self, samples: Sequence[Sample]) -> None:
        """Tell what the server process used, by time; the step is the run's age in seconds."""
        metrics = [
            Metric(f"system/{name}", value, _milliseconds(at), int(at - self._began))
            for at, values in samples
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), _METRICS_IN_A_CALL):
            chunk = metrics[start : start + _METRICS_IN_A_CALL]
            self.client.log_batch(self.parent_id, metrics=chunk)

    def finish(self, status: Status, ended: float) -> None:
        """Say how the run ended, and when."""
        self.client.set_terminated(self.parent_id, status, _milliseconds(ended))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
