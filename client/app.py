"""Builds a client process from its options: one runner a partition, one heartbeat thread.

The only place that wires objects together.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading

import torch

from client.connection import Connection, Stopped
from client.credentials import channel_credentials, join_token
from client.options import ClientOptions, client_ids
from client.progress import StepProgress
from client.runner import ProcessContext, Runner
from client.trainer import choose_device
from common import tracing
from common.algorithms import load_algorithm
from common.errors import FolkmootError
from common.logs import configure_logs, get_logger
from common.tasks import BUILT_IN, load_task

log = get_logger()

# How often it is looked who must renew a lease.
_LOOK_SECONDS = 0.25
_GOODBYE_SECONDS = 1.0
_LAST_WORK_SECONDS = 2.0


def serve(options: ClientOptions) -> int:
    """Take part in a run; return the exit status: 0 at its end, 128 + n after signal n.

    Raises:
        InputError: wrong input.
        RunFailed: the run failed, or this process can't go on with it.
    """
    ids = client_ids(options)
    configure_logs()
    # It would print a traceback about bytes that are no message; the call's error says it, too.
    logging.getLogger("grpc").addHandler(logging.NullHandler())
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    if options.task is not None:
        load_task(options.task)
    if options.strategy is not None:
        load_algorithm(options.strategy)
    tracing.configure(options.otlp_endpoint, "folkmoot-client", clients=list(ids.values()))
    stop = threading.Event()
    credentials = channel_credentials(options, ids.values())
    connection = Connection(options.server, credentials, options.max_wait, stop)
    context = ProcessContext(
        connection,
        list(BUILT_IN) if options.task is None else [options.task],
        list(ids),
        options.data_dir,
        options.state_dir,
        device,
        stop,
        StepProgress(),
        join_token(options.security),
        options.strategy,
    )
    runners = [Runner(context, client_id, partition) for partition, client_id in ids.items()]
    log.info("client started", clients=len(runners), server=options.server, device=device)
    return _run(runners, connection, stop)


def _run(runners: list[Runner], connection: Connection, stop: threading.Event) -> int:
    # What ends: a runner (None), one that can't go on (its error), or the process (a signal).
    endings: queue.SimpleQueue[FolkmootError | signal.Signals | None] = queue.SimpleQueue()

    def on_signal(number: int, _: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        endings.put(signal.Signals(number))

    def run_one(runner: Runner) -> None:
        try:
            runner.run()
            endings.put(None)
        except Stopped:
            pass
        except FolkmootError as error:
            endings.put(error)
        except BaseException:
            log.critical("bug in the client", exc_info=True)
            os._exit(70)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    # The highest partition first: if there are fewer, no other client joins in vain.
    threads = [
        threading.Thread(target=run_one, args=(runner,), daemon=True)
        for runner in reversed(runners)
    ]
    threads.append(threading.Thread(target=_beat, args=(runners, stop), daemon=True))
    for thread in threads:
        thread.start()
    ending: FolkmootError | signal.Signals | None = None
    for _ in runners:
        ending = endings.get()
        if ending is not None:
            break
    stop.set()
    _say_goodbye(runners, connection, ending)
    for thread in threads:
        thread.join(_LAST_WORK_SECONDS / len(threads))
    tracing.shut_down()
    if isinstance(ending, FolkmootError):
        raise ending
    if ending is not None:
        log.info("interrupted", signal=ending.name)
        sys.stderr.flush()
        # A thread may still be within a step of training; nothing of it is kept.
        os._exit(128 + ending)
    return 0


def _say_goodbye(
    runners: list[Runner], connection: Connection, ending: FolkmootError | signal.Signals | None
) -> None:
    reason = ending.name if isinstance(ending, signal.Signals) else type(ending).__name__
    for runner in runners:
        if runner.session_token and not connection.leave(
            runner.session_token, reason, _GOODBYE_SECONDS
        ):
            break
    connection.close()


def _beat(runners: list[Runner], stop: threading.Event) -> None:
    while not stop.wait(_LOOK_SECONDS):
        for runner in runners:
            runner.beat()
