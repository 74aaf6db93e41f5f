"""The Coordinator service: checks requests, calls the coordinator, builds responses.

Thin: whatever is decided is decided elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.struct_pb2 import Struct

from common.bounds import MAX_METRIC_NAME, MAX_METRICS, MAX_TOKEN
from common.errors import RequestError, Status
from common.logs import get_logger
from common.splits import Partitioner, Split
from common.tensors import Digest
from common.training import TrainConfig
from common.transfer import CHUNK_SIZE_BYTES, Piece
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from protos.chunks import decode_message
from server.auth.callers import Clients
from server.auth.join_tokens import JoinTokens
from server.engine.events import Phase
from server.rpc.chunk_cache import OutgoingChunks
from server.rpc.interceptors import Context, duration, model_ref
from server.run import limits
from server.run.assignments import Assignment, Work
from server.run.coordinator import Coordinator
from server.run.limits import check_length, invalid
from server.run.results import Results
from server.run.sessions import Session, check_identity
from server.run.uploads import Announcement, PushResult

log = get_logger()

# A poll is answered this long before its deadline, so that the answer arrives.
_POLL_MARGIN = 1.0
_MIN_POLL = 2.0


class CoordinatorService(pb_grpc.CoordinatorServicer):
    """Serves clients; the promises of each method are in federated.proto.

    Args:
        fine_tune_epochs: of the clients' evaluations; 0: they evaluate the model as it is.
        clients: says whom a caller may act for.
        join_tokens: admit clients; None: no token is asked for.
        know: told the peer of each call of a session.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        task_name: str,
        model_name: str,
        split: Split,
        fine_tune_epochs: int,
        clients: Clients,
        join_tokens: JoinTokens | None,
        know: Callable[[str], None],
    ) -> None:
        self._know = know
        self._clients = clients
        self._join_tokens = join_tokens
        self._coordinator = coordinator
        self._results = Results(coordinator)
        self._sessions = coordinator.sessions
        self._task_name = task_name
        self._model_name = model_name
        self._split = split
        self._fine_tune_epochs = fine_tune_epochs
        self._outgoing = OutgoingChunks()
        self._pace = limits.Pace(coordinator.settings.limits.joins_per_second)

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Let a server serve this, with the codec of `protos.chunks` where chunks travel."""
        chunked: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "PullModel": grpc.unary_stream_rpc_method_handler(
                self.PullModel, pb.PullModelRequest.FromString, bytes
            ),
            "PushUpdate": grpc.stream_unary_rpc_method_handler(
                self.PushUpdate,
                lambda message: decode_message(message, pb.PushUpdateRequest),
                pb.PushUpdateResponse.SerializeToString,
            ),
        }
        name = pb.DESCRIPTOR.services_by_name["Coordinator"].full_name
        pb_grpc.add_CoordinatorServicer_to_server(self, server)
        # In place of the generated ones.
        server.add_registered_method_handlers(name, chunked)

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:
        coordinator = self._coordinator
        allowed = self._clients(context)
        limits.check_client_id(request.client_id)
        check_identity(request.client_id, allowed)
        check_length("instance_id", request.instance_id, limits.MAX_INSTANCE_ID, least=1)
        check_length("join_token", request.join_token, MAX_TOKEN)
        check_length("client_version", request.client_version, limits.MAX_VERSION)
        limits.check_task_names(request.task_names)
        if coordinator.status.ended or coordinator.status.view.phase is Phase.FINISHED:
            self._sessions.await_no_more(request.client_id)
            raise RequestError(Status.FAILED_PRECONDITION, "RUN_ENDED", "the run has ended")
        self._refuse_when_shutting_down()
        if self._task_name not in request.task_names:
            raise invalid(
                f"this server trains {self._task_name!r}, which is not among the client's tasks",
                "TASK_MISMATCH",
            )
        if not 0 <= request.partition < self._split.num_partitions:
            raise invalid(
                f"partition {request.partition} is not one of the run's 0 to "
                f"{self._split.num_partitions - 1} (the server's --num-partitions)",
                "PARTITION_OUT_OF_RANGE",
            )
        self._pace_joining()
        if self._join_tokens is not None:
            self._join_tokens.admit(request.join_token, request.client_id)
        self._refuse_taken(request.partition, request.client_id)
        session = self._sessions.join(request.client_id, request.instance_id, request.partition)
        self._know(context.peer())
        log.info(
            "client joined",
            run_id=coordinator.settings.run_id,
            client=session.client_id,
            partition=request.partition,
            clients=len(self._sessions),
        )
        lease, bounds = self._sessions.lease, coordinator.settings.limits
        return pb.JoinResponse(
            session_token=session.token,
            run_id=coordinator.settings.run_id,
            heartbeat_interval=duration(min(5.0, lease / 3)),
            lease_duration=duration(lease),
            max_poll_duration=duration(max(_MIN_POLL, min(30.0, lease))),
            max_chunk_size_bytes=CHUNK_SIZE_BYTES,
            max_update_size_bytes=bounds.max_update_size_bytes,
            limits=pb.Limits(
                max_num_examples=bounds.max_examples,
                max_update_norm=bounds.max_update_norm or 0.0,
                max_metrics=MAX_METRICS,
                max_metric_name_length=MAX_METRIC_NAME,
                max_concurrent_pulls=limits.MAX_PULLS,
            ),
            task=pb.TaskSpec(
                task_name=self._task_name,
                model_name=self._model_name,
                split=self._data_split(),
                local_tensors=sorted(coordinator.settings.roles.stays),
                hyperparameters=_hyperparameters(coordinator.settings.training),
            ),
        )

    async def Heartbeat(
        self, request: pb.HeartbeatRequest, context: Context
    ) -> pb.HeartbeatResponse:
        session = self._session(request.session_token, context)
        token = request.task_token.decode(errors="replace")
        wanted = not token or self._coordinator.assignments.find(token, session.client_id)
        return pb.HeartbeatResponse(cancel_requested=not wanted)

    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveResponse:
        check_length("session_token", request.session_token, MAX_TOKEN)
        check_length("reason", request.reason, limits.MAX_LEAVE_REASON)
        self._sessions.leave(request.session_token, self._clients(context))
        return pb.LeaveResponse()

    async def PollTaskAssignment(
        self, request: pb.PollTaskAssignmentRequest, context: Context
    ) -> pb.PollTaskAssignmentResponse:
        coordinator = self._coordinator
        remaining = context.time_remaining()
        if remaining is None or remaining < _MIN_POLL:
            raise invalid(
                f"a poll needs a deadline of {_MIN_POLL:g} s or more", "DEADLINE_TOO_SHORT"
            )
        longest = max(_MIN_POLL, min(30.0, self._sessions.lease))
        session = self._session(request.session_token, context)
        session.polls += 1
        poll = session.polls
        session.wake()
        # The caller's deadline comes, whether the server runs or not.
        clock = asyncio.get_running_loop().time
        until = clock() + min(remaining - _POLL_MARGIN, longest)
        while True:
            self._session(request.session_token, context)
            if coordinator.status.ended:
                end = pb.RunEnd(failure_message=coordinator.failure or "")
                return pb.PollTaskAssignmentResponse(run_end=end)
            self._refuse_when_shutting_down()
            if session.polls != poll:
                return pb.PollTaskAssignmentResponse()
            assignment = coordinator.assignments.of_client(session.client_id)
            if assignment is not None:
                return pb.PollTaskAssignmentResponse(assignment=self._task_assignment(assignment))
            seconds = until - clock()
            if seconds <= 0:
                return pb.PollTaskAssignmentResponse()
            await session.wait(seconds)

    async def PullModel(  # type: ignore[override]  # bytes, see add_to_server
        self, request: pb.PullModelRequest, context: Context
    ) -> AsyncIterator[bytes]:
        session = self._session(request.session_token, context)
        version, name = request.model_version, request.payload_name
        offers = self._coordinator.offers
        model = offers.payload(version, name) if name else offers.model(version)
        size = model.digest.size_bytes
        if not 0 <= request.read_offset <= size:
            message = f"read_offset {request.read_offset} is not within the model's {size} bytes"
            raise RequestError(Status.OUT_OF_RANGE, "READ_OFFSET_TOO_LARGE", message)
        with session.pulling(), model.path.open("rb") as file:
            yield pb.PullModelResponse(header=model_ref(model)).SerializeToString()
            start = request.read_offset
            last, reached = session.pulled
            if last == model.digest.blake3 and 0 < start < reached:
                self._coordinator.status.ledger.count_resent(reached - start)
            while True:
                self._session(session.token, context)  # May have ended meanwhile.
                chunk, end = self._outgoing.message(model.digest, file.fileno(), start)
                yield chunk
                self._coordinator.status.ledger.count_down(session.client_id, end - start)
                session.pulled = (model.digest.blake3, end)
                if end == size:
                    return
                start = end

    async def PushUpdate(
        self,
        request_iterator: AsyncIterator[pb.PushUpdateRequest | Piece],
        context: Context,
    ) -> pb.PushUpdateResponse:
        first = await anext(aiter(request_iterator), None)
        if not isinstance(first, pb.PushUpdateRequest) or not first.HasField("header"):
            raise invalid("the first message must be the header", "HEADER_MISSING")
        header = first.header
        session = self._session(header.session_token, context)
        announcement = Announcement(
            digest=Digest(header.digest.blake3, header.digest.size_bytes),
            write_offset=header.write_offset,
            base_version=header.base_model.version,
            base_digest=Digest(
                header.base_model.digest.blake3, header.base_model.digest.size_bytes
            ),
            num_examples=header.num_examples,
            scalars=dict(header.scalars),
            metrics=dict(header.metrics),
        )
        with session.pushing():
            result = await self._results.push(
                header.task_token.decode(errors="replace"),
                session.client_id,
                announcement,
                self._chunks(session, request_iterator, context),
            )
        return _push_response(result)

    async def GetUpload(
        self, request: pb.GetUploadRequest, context: Context
    ) -> pb.GetUploadResponse:
        session = self._session(request.session_token, context)
        token = request.task_token.decode(errors="replace")
        result = self._coordinator.spool.committed(token, session.client_id)
        if result is not None:
            return pb.GetUploadResponse(upload=_upload(result))
        if self._results.find(token, session.client_id) is None:
            message = "no such assignment; poll"
            raise RequestError(Status.NOT_FOUND, "ASSIGNMENT_UNKNOWN", message)
        return pb.GetUploadResponse(upload=pb.Upload())

    async def ReportTaskResult(
        self, request: pb.ReportTaskResultRequest, context: Context
    ) -> pb.ReportTaskResultResponse:
        session = self._session(request.session_token, context)
        coordinator = self._coordinator
        token = request.task_token.decode(errors="replace")
        kind = request.WhichOneof("result")
        if kind is None:
            raise invalid("result is not set")
        evaluation, failure = request.evaluation, request.failure
        metrics = limits.check_metrics(evaluation.metrics)
        if not 0 <= evaluation.num_examples <= coordinator.settings.limits.max_examples:
            most = coordinator.settings.limits.max_examples
            raise invalid(f"num_examples must be 0 to {most} (the server's --max-examples)")
        check_length("reason", failure.reason, limits.MAX_FAILURE_REASON)
        check_length("message", failure.message, limits.MAX_FAILURE_MESSAGE)
        if coordinator.assignments.was_finished(token, session.client_id):
            return pb.ReportTaskResultResponse()
        assignment = coordinator.assignments.find(token, session.client_id)
        if assignment is None:
            raise RequestError(Status.ABORTED, "ROUND_CLOSED", "the result is not wanted; poll")
        if kind == "failure":
            self._results.report_failure(assignment, failure.reason, failure.message)
        elif assignment.work is Work.EVALUATE:
            self._results.report_evaluation(assignment, evaluation.num_examples, metrics)
        else:
            raise invalid("training work is answered with PushUpdate", "WORK_MISMATCH")
        return pb.ReportTaskResultResponse()

    async def _chunks(
        self,
        session: Session,
        requests: AsyncIterator[pb.PushUpdateRequest | Piece],
        context: Context,
    ) -> AsyncIterator[Piece]:
        async for piece in requests:
            self._session(session.token, context)  # May have ended meanwhile.
            if not isinstance(piece, Piece):  # A second header, or nothing: as an empty chunk.
                piece = Piece(0, memoryview(b""), last=False)  # noqa: PLW2901
            yield piece

    def _session(self, token: str, context: Context) -> Session:
        session = self._sessions.get(token, self._clients(context))
        self._know(context.peer())
        return session

    def _refuse_taken(self, partition: int, client_id: str) -> None:
        """Refuse a partition that another client holds: its examples would count twice."""
        if self._split.partitioner is Partitioner.NONE:
            return
        others = [name for name in self._sessions.holders(partition) if name != client_id]
        if others:
            message = (
                f"partition {partition} is held by client {others[0]!r}; name another one, or wait "
                f"until it leaves or its lease of {self._sessions.lease:g} s runs out"
            )
            raise RequestError(Status.FAILED_PRECONDITION, "PARTITION_TAKEN", message)

    def _pace_joining(self) -> None:
        seconds = self._pace.admit(self._coordinator.clock())
        if seconds:
            message = f"many clients come at once; come again in {seconds:.1f} s"
            raise RequestError(Status.RESOURCE_EXHAUSTED, "JOINING_PACED", message, seconds)

    def _refuse_when_shutting_down(self) -> None:
        if self._coordinator.status.shutting_down:
            message = "the server is shutting down; try again later"
            raise RequestError(Status.UNAVAILABLE, "SHUTTING_DOWN", message)

    def _data_split(self) -> pb.DataSplit:
        split = self._split
        scheme = pb.DataSplit.Partitioner.Value(f"PARTITIONER_{split.partitioner.name}")
        return pb.DataSplit(**vars(split) | {"partitioner": scheme})

    def _task_assignment(self, assignment: Assignment) -> pb.TaskAssignment:
        coordinator = self._coordinator
        config = coordinator.settings.training
        message = pb.TaskAssignment(
            task_token=assignment.task_token.encode(),
            round=assignment.round,
            model=model_ref(coordinator.offers.model(assignment.model_version)),
            time_remaining=duration(coordinator.time_remaining),
            seed=coordinator.offers.seed_of(assignment),
            previous_round=coordinator.offers.previous_round(
                assignment.client_id, coordinator.status.view
            ),
            traceparent=assignment.traceparent,
        )
        if assignment.work is Work.EVALUATE:
            message.evaluate.SetInParent()
            if self._fine_tune_epochs:
                tuning = replace(config, local_epochs=self._fine_tune_epochs)
                message.evaluate.fine_tune.CopyFrom(_train_work(tuning))
            return message
        message.train.CopyFrom(_train_work(config))
        offers = coordinator.offers
        if offers.algorithm.client is not None:
            asked = message.train.algorithm
            asked.name = offers.algorithm.setting.name
            asked.scalars.update(offers.scalars)
            for name, digest in offers.payloads(assignment.model_version).items():
                asked.payloads[name].blake3 = digest.blake3
                asked.payloads[name].size_bytes = digest.size_bytes
        return message


def _hyperparameters(config: TrainConfig) -> Struct:
    found = Struct()
    found.update(config.hyperparameters)
    return found


def _train_work(config: TrainConfig) -> pb.TrainWork:
    return pb.TrainWork(**vars(config) | {"hyperparameters": _hyperparameters(config)})


def _upload(result: PushResult) -> pb.Upload:
    return pb.Upload(committed_size_bytes=result.committed_size_bytes, complete=result.complete)


def _push_response(result: PushResult) -> pb.PushUpdateResponse:
    return pb.PushUpdateResponse(
        outcome=pb.PushUpdateResponse.Outcome.Value(f"OUTCOME_{result.outcome.value}"),
        upload=_upload(result),
        message=result.message,
    )
