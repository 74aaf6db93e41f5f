"""Real processes behind TLS, started as the README has it, and what their logs give away."""

import re
import signal
import subprocess
import sys

from common.tasks import load_task
from tests import certs
from tests.e2e.harness import ROOT, TASK

FLAGS = ("--rounds", 3, "--min-clients", 2, "--num-partitions", 2)


def _script(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_run_with_certificates_is_started_from_the_folders_that_make_certs_made(federation):
    folder = certs.make(federation.folder / "certs")
    federation.operator_certs = folder / "operator"
    server = federation.server("--config", folder / "server" / "server.toml", *FLAGS)
    own = folder / "clients"
    first = federation.client(0, "--config", own / "client-0" / "client.toml")
    status = _script(
        *("scripts.admin", "status", "--run-dir", federation.run_dir),
        *("--certs", folder / "operator"),
    )
    assert (status.returncode, "waiting" in status.stdout) == (0, True), status.stderr
    second = federation.client(1, "--config", own / "client-1" / "client.toml")
    assert [p.wait() for p in (server, first, second)] == [0] * 3, server.text
    _check_logs(federation, [])


def test_clients_without_certificates_come_in_with_a_join_token(federation):
    folder = certs.make(federation.folder / "certs", clients=0)
    ca = folder / "server" / "ca.pem"
    pair = ("--tls-cert", folder / "server/cert.pem", "--tls-key", folder / "server/key.pem")
    public = federation.folder / "public"
    public.mkdir()
    (public / "ca.pem").write_bytes(ca.read_bytes())
    federation.operator_certs = public
    server = federation.server(*FLAGS, *pair)
    admin = ("--run-dir", federation.run_dir, "--certs", public)
    made = _script("scripts.admin", "token", "create", "--clients", 2, *admin)
    assert made.returncode == 0, made.stderr
    token = federation.folder / "token"
    token.write_text(made.stdout)
    without = federation.client(0, "--tls-ca", ca)
    assert without.wait() == 2
    assert "--join-token-file: this server asks for a join token" in without.errors[0]
    clients = [
        federation.client(number, "--tls-ca", ca, "--join-token-file", token) for number in (0, 1)
    ]
    assert [p.wait() for p in (server, *clients)] == [0, 0, 0], server.text
    _check_logs(federation, [made.stdout.strip().partition(".")[2]])


def _check_logs(federation, secrets):
    """No secret, tensor or training example is in what the processes have logged."""
    text = "".join(process.text for process in federation.processes)
    text += (federation.run_dir / "server.jsonl").read_text()
    secrets.append((federation.run_dir / "operator.token").read_text().strip())
    for secret in secrets:
        assert len(secret) > 20
        assert secret not in text
    assert "PRIVATE KEY" not in text
    assert "session_token" not in text
    assert "tensor(" not in text
    # Numbers of the data, and of the model, to the digits that anyone would print.
    examples = load_task(TASK).data(None, train=True).inputs.flatten().tolist()
    shown = set(re.findall(r"-?\d+\.\d{4,}", text))
    for value in examples:
        assert f"{value:.4f}" not in shown
        assert repr(value) not in text
    assert max(map(len, text.splitlines())) < 1000


def test_a_server_that_is_open_to_anyone_says_so_and_must_be_told_so_again(federation):
    server = federation.server("--insecure", bind="0.0.0.0:0")
    (warning,) = server.events("plain text, and open to anyone (--insecure)")
    assert warning["level"] == "warning"
    server.signal(signal.SIGKILL)
    server.wait()
    again = federation.server("--resume", wait=False, bind="0.0.0.0:0")
    assert again.wait() == 2
    assert again.errors[0].startswith("error: --bind: ")
