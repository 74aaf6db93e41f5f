"""The Admin service: the run as operators see it, and the wish to stop it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator

from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import RequestError, Status
from common.logs import get_logger
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from server.auth.join_tokens import JoinToken, JoinTokens
from server.engine.events import Phase
from server.rpc.interceptors import Context, duration, model_ref
from server.run.coordinator import Coordinator
from server.run.ledger import RoundSummary
from server.run.limits import MAX_CLIENT_ID, check_length, invalid
from server.run.roster import ClientSummary, Roster

_DEFAULT_PAGE = 50
_LARGEST_PAGE = 1000
_DEFAULT_KEEPALIVE = 30.0
_DAY_SECONDS = 86_400.0
_MOST_ADMITTED = 1000

log = get_logger()


class AdminService(pb_grpc.AdminServicer):
    """Serves operators; the promises of each method are in federated.proto."""

    def __init__(
        self,
        coordinator: Coordinator,
        task_name: str,
        start_time: Timestamp,
        join_tokens: JoinTokens | None,
    ) -> None:
        self._join_tokens = join_tokens
        self._coordinator = coordinator
        self._task_name = task_name
        self._start_time = start_time

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=self._run())

    async def ListRounds(
        self, request: pb.ListRoundsRequest, context: Context
    ) -> pb.ListRoundsResponse:
        size = _page_size(request.page_size)
        history = self._coordinator.status.history
        # The token counts from the oldest round, so that new rounds don't move the pages.
        end = len(history)
        if request.page_token:
            token = request.page_token
            if not (token.isdecimal() and len(token) < 20 and int(token) <= end):
                raise invalid("page_token is not one of ListRoundsResponse")
            end = int(token)
        begin = max(0, end - size)
        return pb.ListRoundsResponse(
            rounds=[_round(summary) for summary in reversed(history[begin:end])],
            next_page_token=str(begin) if begin else "",
        )

    async def ListClients(
        self, request: pb.ListClientsRequest, context: Context
    ) -> pb.ListClientsResponse:
        size, coordinator = _page_size(request.page_size), self._coordinator
        check_length("page_token", request.page_token, MAX_CLIENT_ID)
        roster = Roster(
            coordinator.status.view,
            coordinator.sessions,
            coordinator.status.ledger,
            coordinator.spool.accepted,
            coordinator.clock(),
        )
        # The token is the last page's last client, so that those who come and go move no page.
        begin = bisect_right(roster.client_ids, request.page_token)
        page = roster.client_ids[begin : begin + size]
        more = begin + size < len(roster.client_ids)
        return pb.ListClientsResponse(
            clients=[_client(roster.summary(client_id)) for client_id in page],
            next_page_token=page[-1] if more else "",
        )

    async def WatchRun(
        self, request: pb.WatchRunRequest, context: Context
    ) -> AsyncIterator[pb.WatchRunResponse]:
        coordinator = self._coordinator
        keepalive = _DEFAULT_KEEPALIVE
        if request.HasField("keepalive_interval"):
            keepalive = request.keepalive_interval.ToMilliseconds() / 1000
            if not 1 <= keepalive <= 3600:
                raise invalid("keepalive_interval must be 1 s to 1 h")
        while True:
            run = self._run()
            yield pb.WatchRunResponse(run=run)
            if coordinator.status.ended or coordinator.status.shutting_down:
                return
            await coordinator.status.wait_for_change(run.revision, keepalive)

    async def StopRun(self, request: pb.StopRunRequest, context: Context) -> pb.StopRunResponse:
        coordinator = self._coordinator
        if coordinator.status.view.phase is Phase.FINISHED:
            raise RequestError(Status.FAILED_PRECONDITION, "RUN_ENDED", "the run has ended")
        try:
            await coordinator.stop()
        except OSError as error:
            message = (
                f"the order can't be stored ({error.strerror}); free some space, then try again"
            )
            raise RequestError(Status.RESOURCE_EXHAUSTED, "ORDER_NOT_STORED", message) from error
        return pb.StopRunResponse(run=self._run())

    async def CreateJoinToken(
        self, request: pb.CreateJoinTokenRequest, context: Context
    ) -> pb.CreateJoinTokenResponse:
        most, seconds = request.max_clients or 1, _DAY_SECONDS
        if not 1 <= most <= _MOST_ADMITTED:
            raise invalid(f"max_clients must be 1 to {_MOST_ADMITTED}")
        if request.HasField("lifetime"):
            seconds = request.lifetime.ToMilliseconds() / 1000
            if not 1 <= seconds <= 366 * _DAY_SECONDS:
                raise invalid("lifetime must be 1 s to 366 days")
        secret, token = self._tokens().create(most, seconds)
        log.info("join token created", token_id=token.token_id, max_clients=most)
        return pb.CreateJoinTokenResponse(secret=secret, join_token=_join_token(token))

    async def ListJoinTokens(
        self, request: pb.ListJoinTokensRequest, context: Context
    ) -> pb.ListJoinTokensResponse:
        return pb.ListJoinTokensResponse(join_tokens=map(_join_token, self._tokens().list()))

    async def RevokeJoinToken(
        self, request: pb.RevokeJoinTokenRequest, context: Context
    ) -> pb.RevokeJoinTokenResponse:
        token = self._tokens().revoke(request.token_id)
        self._coordinator.sessions.expel(token.client_ids)
        log.info("join token revoked", token_id=token.token_id, clients=token.client_ids)
        return pb.RevokeJoinTokenResponse(join_token=_join_token(token))

    def _tokens(self) -> JoinTokens:
        if self._join_tokens is None:
            message = "this server asks for no join tokens; they go with --tls-cert alone"
            raise RequestError(Status.FAILED_PRECONDITION, "JOIN_TOKENS_UNUSED", message)
        return self._join_tokens

    def _run(self) -> pb.Run:
        coordinator = self._coordinator
        current = _round(coordinator.status.current_round())
        if coordinator.status.view.collecting:
            current.time_remaining.CopyFrom(duration(coordinator.time_remaining))
        return pb.Run(
            run_id=coordinator.settings.run_id,
            state=self._state(),
            revision=coordinator.status.revision,
            task_name=self._task_name,
            target_round_count=coordinator.status.view.rounds,
            round=current,
            model=model_ref(coordinator.offers.newest_model),
            live_client_count=len(coordinator.sessions),
            failure_message=coordinator.failure or "",
            start_time=self._start_time,
        )

    def _state(self) -> pb.Run.State.ValueType:
        view = self._coordinator.status.view
        if view.phase is Phase.FINISHED:
            return pb.Run.STATE_FAILED if view.failure else pb.Run.STATE_SUCCEEDED
        if view.stopping:
            return pb.Run.STATE_STOPPING
        return pb.Run.STATE_WAITING if view.phase is Phase.SELECTING else pb.Run.STATE_ACTIVE


def _page_size(wanted: int) -> int:
    size = wanted or _DEFAULT_PAGE
    if not 1 <= size <= _LARGEST_PAGE:
        raise invalid(f"page_size must be 0 to {_LARGEST_PAGE}")
    return size


def _round(summary: RoundSummary) -> pb.Round:
    return pb.Round(
        number=summary.number,
        attempt=summary.attempt,
        phase=pb.Round.Phase.Value(f"PHASE_{summary.phase.upper()}"),
        cohort_size=summary.cohort_size,
        report_goal=summary.report_goal,
        accepted_count=summary.accepted,
        refused_count=summary.refused,
        dropped_count=summary.dropped,
        metrics=summary.metrics,
    )


def _client(summary: ClientSummary) -> pb.Client:
    return pb.Client(
        client_id=summary.client_id,
        partition=summary.partition,
        state=pb.Client.State.Value(f"STATE_{summary.state}"),
        state_duration=duration(summary.seconds),
        num_examples=summary.num_examples,
        train_loss=summary.train_loss,
        bytes_down=summary.bytes_down,
        bytes_up=summary.bytes_up,
    )


def _join_token(token: JoinToken) -> pb.JoinToken:
    message = pb.JoinToken(
        token_id=token.token_id,
        max_clients=token.max_clients,
        client_ids=token.client_ids,
        revoked=token.revoked,
    )
    message.expire_time.FromMilliseconds(round(token.expires * 1000))
    return message
