"""The gRPC servers for clients and for operators, and Prometheus' port: where, and what they serve.

Knows nothing about files or how the run is going.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from common import __version__
from common.errors import InputError
from common.process import descriptors
from common.tls import is_loopback
from common.transfer import CHUNK_SIZE_BYTES
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from server import configuration
from server.auth.callers import Access
from server.auth.join_tokens import JoinTokens
from server.options import ProcessOptions, SecurityOptions, ServerOptions
from server.prometheus.collector import registry_of
from server.prometheus.http import MetricsPort
from server.rpc.admin_service import AdminService
from server.rpc.connections import Connections
from server.rpc.coordinator_service import CoordinatorService
from server.rpc.interceptors import Authorize, Context, ErrorInterceptor
from server.run.coordinator import Coordinator
from server.run.limits import MAX_STREAMS

# Connections of operators, and descriptors that are none of clients'.
_ADMIN_MOST = 64
_OTHER_DESCRIPTORS = 256
_CHANNEL_OPTIONS = [
    # Without this, a second server on the same port starts, silently.
    ("grpc.so_reuseport", 0),
    # What a stream may send ahead of its reader, and a connection ahead of its streams. Left to
    # itself, gRPC takes megabytes of each.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 16),
    ("grpc.experimental.tcp_max_read_chunk_size", 1 << 18),
    # Find half-open connections, and let clients look for them as often.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this, the answer to a keepalive's ping is awaited for a minute.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Somebody who sends too much, or connects and says nothing, has no hold on the others.
    ("grpc.max_receive_message_length", CHUNK_SIZE_BYTES + (64 << 10)),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 120_000),
]


@dataclass(frozen=True)
class Ports:
    """The two gRPC servers, for clients and for operators, and where they listen: HOST:PORT.

    `metrics`: None without --metrics-port.
    """

    clients: grpc.aio.Server
    admin: grpc.aio.Server
    address: str
    admin_address: str
    access: Access
    metrics: MetricsPort | None
    connections: Connections
    # Tasks that end with the ports.
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def addresses(self) -> dict[str, str]:
        """Where it is served, as server.json and the log say it."""
        found = {"address": self.address, "admin_address": self.admin_address}
        return found if self.metrics is None else found | {"metrics_address": self.metrics.address}

    async def stop(self, grace: float) -> None:
        """Serve no more."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(self.clients.stop(grace), self.admin.stop(grace))
        if self.metrics is not None:
            await asyncio.to_thread(self.metrics.close)


def listen(options: ProcessOptions, access: Access, security: SecurityOptions) -> Ports:
    """Take the ports; nothing is served before `start`.

    Args:
        options: the addresses.
        access: how they are reached, and what they ask for.
        security: the files of `access`, and whether plain text may be reached from elsewhere.

    Raises:
        InputError: an address can't be listened on, or must not be.
    """
    # Files of the run must open, however many connect.
    clients = _grpc_server(descriptors() - _OTHER_DESCRIPTORS, None)
    connections = Connections()

    def authorize(context: Context) -> None:
        access.operators(context)
        connections.know(context.peer())

    admin = _grpc_server(_ADMIN_MOST, authorize)
    plain_anywhere = security.insecure or access.credentials is not None
    address = _listen(clients, options.bind, "--bind", access, plain_anywhere)
    admin_bind = options.admin_bind
    if admin_bind is None:
        wanted = int(options.bind.rpartition(":")[2])
        admin_bind = f"127.0.0.1:{wanted + 1 if wanted else 0}"
    admin_address = _listen(admin, admin_bind, "--admin-bind", access, plain_anywhere)
    metrics = None
    if options.metrics_port is not None:
        host = admin_address.rpartition(":")[0]
        metrics = MetricsPort(host, options.metrics_port, access, security)
    return Ports(clients, admin, address, admin_address, access, metrics, connections)


async def start(ports: Ports, options: ServerOptions, coordinator: Coordinator) -> None:
    """Serve clients, operators and Prometheus from now on."""
    task_name = options.run.task
    tokens = None
    if ports.access.wants_join_tokens:
        tokens = JoinTokens(coordinator.directory.path / "join_tokens.json", time.time)
    service = CoordinatorService(
        coordinator,
        task_name,
        options.run.model or "",
        configuration.data_split(options.split),
        options.evaluation.fine_tune_epochs,
        ports.access.clients,
        tokens,
        ports.connections.know,
    )
    now = Timestamp()
    now.GetCurrentTime()
    service.add_to_server(ports.clients)
    pb_grpc.add_AdminServicer_to_server(
        AdminService(coordinator, task_name, now, tokens), ports.admin
    )
    services = pb.DESCRIPTOR.services_by_name
    await _add_health_and_reflection(ports.clients, services["Coordinator"].full_name)
    await _add_health_and_reflection(ports.admin, services["Admin"].full_name)
    await ports.clients.start()
    await ports.admin.start()
    watching = ports.connections.watch(ports.address, ports.admin_address)
    ports.tasks.add(asyncio.create_task(watching))
    if ports.metrics is not None:
        labels = {
            "run_id": coordinator.settings.run_id,
            "task": task_name,
            "model": options.run.model or "",
            "strategy": options.strategy.strategy,
            "version": __version__,
        }
        ports.metrics.serve(registry_of(coordinator.status, coordinator.sessions, labels))


def _grpc_server(connections: int, authorize: Authorize | None) -> grpc.aio.Server:
    limit = ("grpc.max_allowed_incoming_connections", connections)
    interceptors = [ErrorInterceptor(authorize)]
    return grpc.aio.server(interceptors=interceptors, options=[*_CHANNEL_OPTIONS, limit])


def _listen(
    server: grpc.aio.Server, address: str, flag: str, access: Access, anywhere: bool
) -> str:
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise InputError(f"{flag}: {address!r} is not HOST:PORT, e.g. 127.0.0.1:7070")
    if not anywhere and not is_loopback(address):
        raise InputError(
            f"{flag}: {address} is reached from other machines, in plain text; give --tls-cert "
            "and --tls-key (./scripts/make_certs makes them), or say --insecure"
        )
    try:
        if access.credentials is None:
            return f"{host}:{server.add_insecure_port(address)}"
        return f"{host}:{server.add_secure_port(address, access.credentials)}"
    except RuntimeError as error:
        raise InputError(
            f"{flag}: can't listen on {address}; is it in use, or no address of this machine? "
            "Name another, or port 0 for a free one"
        ) from error


async def _add_health_and_reflection(server: grpc.aio.Server, service: str) -> None:
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in ("", service):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    names = (service, "grpc.health.v1.Health", reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
