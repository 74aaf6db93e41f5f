"""The HTTP service: what it answers, and that whatever is sent to it, wrong input is a 4xx."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO

import httpx
import numpy as np
import pytest
from fastapi import HTTPException
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient

from common.errors import InputError
from common.pictures import open_pictures
from scripts.serving.batching import Batcher, Batching, TooBusy
from scripts.serving.loading import load_model
from scripts.serving.service import (
    MOST_BYTES,
    MOST_INPUTS,
    _Decoders,
    _unless_gone,
    create_app,
)
from tests.exported import write_classifier, write_text

LIGHT = [[[1, 1], [1, 1]]]
JSON = {"Content-Type": "application/json"}


def encoded(picture, kind="PNG"):
    file = BytesIO()
    picture.save(file, kind)
    return file.getvalue()


PICTURE = encoded(Image.new("L", (5, 5), 255))
NOISE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9), np.uint8)))


@pytest.fixture(scope="module", params=[write_classifier, write_text], ids=["pictures", "text"])
def either(request, tmp_path_factory):
    path = request.param(tmp_path_factory.mktemp("models") / "tiny.onnx")
    with TestClient(create_app(*load_model(path), Batching())) as client:
        yield client


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = write_classifier(tmp_path_factory.mktemp("models") / "tiny.onnx")
    with TestClient(create_app(*load_model(path), Batching())) as client:
        yield client


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = write_text(tmp_path_factory.mktemp("models") / "tiny.onnx")
    with TestClient(create_app(*load_model(path), Batching())) as client:
        yield client


def labels(response):
    assert response.status_code == 200, response.text
    return [answers[0]["label"] for answers in response.json()["predictions"]]


def refused(response, status, said):
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert said in response.json()["detail"]
    assert len(response.json()["detail"].splitlines()) == 1


def test_arrays_are_answered_with_their_classes(pictures):
    response = pictures.post("/predict", json={"inputs": [LIGHT, [[[-1, -1], [-1, 0]]]]})
    assert labels(response) == ["light", "dark"]
    assert [len(answers) for answers in response.json()["predictions"]] == [2, 2]
    first = response.json()["predictions"][0]
    assert sum(answer["probability"] for answer in first) == pytest.approx(1)


def test_pictures_are_answered_raw_and_as_the_files_of_a_form(pictures):
    dark = encoded(Image.new("RGB", (50, 60)), "JPEG")
    raw = pictures.post("/predict", content=dark, headers={"Content-Type": "image/jpeg"})
    assert labels(raw) == ["dark"]
    files = [("file", ("a.png", PICTURE)), ("file", ("b", dark)), ("other", ("c.png", PICTURE))]
    assert labels(pictures.post("/predict", files=files)) == ["light", "dark", "light"]


def test_texts_are_answered_with_what_comes_next(text):
    response = text.post("/predict", params={"top": 1}, json={"inputs": ["ab", [0, 1, 2], "c"]})
    assert labels(response) == ["c", " ", " "]
    assert [len(answers) for answers in response.json()["predictions"]] == [1, 1, 1]


def test_the_model_says_what_it_is_and_takes(pictures):
    found = pictures.get("/model").json()
    assert (found["task"], found["round"], found["classes"]) == ("tiny", 3, ["dark", "light"])
    assert found["inputs"]["kind"] == "image"
    assert pictures.get("/health").json() == {"status": "ok"}


def test_the_page_and_the_schema_load_nothing_from_elsewhere(either):
    page = either.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "://" not in page.text
    schema = either.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.")
    assert set(schema["paths"]) == {"/predict", "/model", "/health"}
    bodies = schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    example = bodies["application/json"]["example"]
    assert either.post("/predict", json=example).status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON"),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "Invalid JSON"),
        (b"null", "Input should be an object"),
        (b"[]", "Input should be an object"),
        (b"{}", "inputs: Field required"),
        (b'{"inputs": []}', "inputs: List should have at least 1 item"),
        (b'{"inputs": "ab"}', "inputs: Input should be a valid array"),
        (b'{"inputs": [[]], "top": 2}', "top: Extra inputs are not permitted"),
        (b'{"inputs": [[]]}', ""),
        (b'{"inputs": [null]}', "must be numbers"),
        (b'{"inputs": [{"a": 1}]}', "must be numbers"),
        (b'{"inputs": [[1, [2, "a"]]]}', "different lengths"),
        (b'{"inputs": [[[["1", "2"], ["3", "4"]]]]}', "must be numbers"),
        (b'{"inputs": [[[[NaN, 1], [2, 3]]]]}', ""),
        (b'{"inputs": [[[[1e999, 1], [2, 3]]]]}', ""),
        (b'{"inputs": [[[[3e38, 3e38], [3e38, 3e38]]]]}', ""),
        (b'{"inputs": [' + b"9" * 5000 + b"]}", ""),
        (b'{"inputs": ["", "\\u0000", "\\ud800"]}', ""),
        (b'{"inputs": [' + b'"a",' * MOST_INPUTS + b'"a"]}', f"at most {MOST_INPUTS} items"),
    ],
)
def test_json_that_is_no_input_is_refused(either, body, said):
    response = either.post("/predict", content=body, headers=JSON)
    refused(response, 422, said)


@pytest.mark.parametrize("top", ["0", "-1", "1001", "many", "1.5", ""])
def test_a_wrong_number_of_answers_is_refused(pictures, top):
    response = pictures.post("/predict", params={"top": top}, json={"inputs": [LIGHT]})
    refused(response, 422, "query.top: ")


@pytest.mark.parametrize(
    "content",
    [b"", b"GIF89a", NOISE[:40], NOISE[:-40], b"<svg/>", b"\x80\x04N.", bytes(10_000)],
    ids=["none", "head", "begun", "truncated", "svg", "pickle", "zeros"],
)
@pytest.mark.parametrize("form", [True, False])
def test_what_is_no_picture_is_refused(pictures, content, form):
    if form:
        response = pictures.post("/predict", files={"file": ("a.png", content)})
    else:
        response = pictures.post("/predict", content=content, headers={"Content-Type": "image/png"})
    refused(response, 422, "no readable picture")


def test_a_picture_that_would_be_huge_is_refused(pictures):
    bomb = encoded(Image.new("1", (5000, 5000)))
    response = pictures.post("/predict", content=bomb, headers={"Content-Type": "image/png"})
    refused(response, 422, "at most 16,000,000")


def test_pictures_that_are_large_together_are_refused_before_one_is_decoded(pictures, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it is decoded"))
    large = encoded(Image.new("1", (4000, 4000)))
    response = pictures.post("/predict", files=[("file", large)] * 5)
    refused(response, 422, "5 pictures have 80,000,000 pixels; at most 64,000,000 in all")


def test_decoding_ends_when_its_time_is_over(pictures, monkeypatch):
    monkeypatch.setattr("scripts.serving.service._DECODE_SECONDS", 0)
    for body in ({"files": {"file": NOISE}}, {"json": {"inputs": [[[[0.5] * 2] * 2]] * 2000}}):
        response = pictures.post("/predict", **body)
        refused(response, 503, "not decoded in 0 s; send fewer, or smaller ones")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_one_picture_can_be_given_up_while_it_is_decoded(kind):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)

    def check():
        raise TooBusy

    (decode,) = open_pictures([encoded(Image.fromarray(noise), kind)], check=check)
    with pytest.raises(TooBusy):
        decode()


def test_more_requests_than_may_wait_for_a_decoder_are_told_to_come_back(pictures, monkeypatch):
    monkeypatch.setattr("scripts.serving.service._MOST_DECODING", 0)
    refused(pictures.post("/predict", files={"file": PICTURE}), 503, "too many wait")


def test_decoding_ends_when_the_sender_hangs_up():
    began, ended = threading.Event(), threading.Event()

    def decode(check):
        began.set()
        try:
            while not ended.wait(0.01):
                check()
        finally:
            ended.set()

    async def ask():
        decoders = _Decoders()
        messages = asyncio.Queue()
        request = Request({"type": "http"}, messages.get)
        asked = asyncio.create_task(_unless_gone(request, decoders.run(decode)))
        assert await asyncio.to_thread(began.wait, 60)
        messages.put_nowait({"type": "http.disconnect"})
        with pytest.raises(HTTPException, match="hung up"):
            await asked
        assert await asyncio.to_thread(ended.wait, 60)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:7080"}, 200),
        ({"Origin": "http://127.0.0.1:7080", "Sec-Fetch-Site": "same-origin"}, 200),
        # A proxy gives Host a name of its own, but leaves what the browser says.
        ({"Origin": "https://example.org", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Host": "LOCALHOST:7080"}, 200),
        ({"Host": "[::1]:7080"}, 200),
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"}, 403),
        # A name that its owner lets lead to loopback.
        ({"Host": "example.org:7080", "Origin": "http://example.org:7080"}, 403),
        ({"Host": "127.0.0.1.example.org"}, 403),
    ],
)
def test_a_page_of_another_site_can_not_use_the_service_on_loopback(tmp_path, headers, status):
    path = write_classifier(tmp_path / "tiny.onnx")
    app = create_app(*load_model(path), Batching())
    with TestClient(app, base_url="http://127.0.0.1:7080") as client:
        response = client.post("/predict", files={"file": PICTURE}, headers=headers)
        assert response.status_code == status
        if "Host" in headers:
            assert client.get("/model", headers=headers).status_code == status
        else:
            # A link may lead here.
            assert client.get("/docs", headers=headers).status_code == 200


def test_a_body_that_is_too_long_is_refused_announced_or_not(either):
    content = b" " * (MOST_BYTES + 1)
    refused(either.post("/predict", content=content, headers=JSON), 413, "at most 8 MiB")
    pieces = (content[: 1 << 20] for _ in range(9))
    refused(either.post("/predict", content=pieces, headers=JSON), 413, "at most 8 MiB")


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "/", ";"]
)
def test_a_body_of_another_type_is_refused(either, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    refused(either.post("/predict", content=b"a", headers=headers), 415, "send application/json")


@pytest.mark.parametrize(
    ("kind", "body", "status", "said"),
    [
        ("multipart/form-data", b"a", 400, "boundary"),
        ("multipart/form-data; boundary=x", b"", 422, "no file"),
        ("multipart/form-data; boundary=x", b"a", 400, "the form can't be read"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\n\r\na\r\n--x--",
            400,
            "the form can't be read",
        ),
        ("multipart/form-data; boundary=x; charset=rot13", b"--x\r\n", 422, "no file"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\na\r\n--x--\r\n',
            422,
            "the form has no file",
        ),
    ],
)
def test_a_form_that_is_damaged_or_empty_is_refused(pictures, kind, body, status, said):
    response = pictures.post("/predict", content=body, headers={"Content-Type": kind})
    refused(response, status, said)


def test_what_a_model_does_not_take_is_refused(pictures, text):
    refused(pictures.post("/predict", json={"inputs": ["a"]}), 422, "takes pictures, not text")
    response = text.post("/predict", content=PICTURE, headers={"Content-Type": "image/png"})
    refused(response, 422, "takes text, not pictures")
    refused(text.post("/predict", files={"file": PICTURE}), 422, "takes text, not pictures")


def test_other_paths_and_methods_are_refused(either):
    refused(either.get("/predict"), 405, "Method Not Allowed")
    refused(either.get("/../../etc/passwd"), 404, "Not Found")


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(
        ["application/json", "image/png", "multipart/form-data; boundary=x", "text/plain"]
    ),
    body=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab\0\ud800€"),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner),
    ).map(lambda value: json.dumps({"inputs": [value]}).encode())
    | st.builds(
        lambda at, by: PICTURE[:at] + by + PICTURE[at + 1 :],
        st.integers(0, len(PICTURE)),
        st.binary(max_size=4),
    )
    | st.text('-x\r\n:; ="abcfimnorst', max_size=100).map(
        lambda value: ("--x\r\n" + value).encode()
    ),
)
def test_whatever_is_sent_is_answered_by_200_or_4xx(either, kind, body):
    response = either.post("/predict", content=body, headers={"Content-Type": kind})
    assert response.status_code == 200 or 400 <= response.status_code < 500


# ------------------------------------------------------------------ batching


def test_examples_of_concurrent_requests_share_runs_of_at_most_so_many():
    sizes = []

    def run(examples):
        sizes.append(len(examples))
        return np.stack(examples)

    async def ask():
        batcher = Batcher(run, Batching(most=4, wait=60))
        async with batcher.running():
            return await asyncio.gather(
                *(batcher.rows([np.array([n]), np.array([-n])]) for n in range(4))
            )

    answers = asyncio.run(ask())
    assert sizes == [4, 4]
    assert [[value.item() for value in answer] for answer in answers] == [[n, -n] for n in range(4)]


def test_a_batch_waits_no_longer_than_it_may():
    async def ask():
        batcher = Batcher(np.stack, Batching(most=4, wait=0.001))
        async with asyncio.timeout(30), batcher.running():
            return await batcher.rows([np.array([7])])

    assert asyncio.run(ask())[0].item() == 7


def test_one_bad_example_does_not_spoil_the_others_of_its_batch():
    def run(examples):
        if any(example < 0 for example in examples):
            raise InputError("negative")
        return np.stack(examples)

    async def ask():
        batcher = Batcher(run, Batching(most=3, wait=60))
        async with batcher.running():
            asked = (batcher.rows([np.array(n)]) for n in (1, -1, 2))
            return await asyncio.gather(*asked, return_exceptions=True)

    good, bad, other = asyncio.run(ask())
    assert (good[0].item(), other[0].item(), str(bad)) == (1, 2, "negative")


def test_more_than_may_wait_are_refused():
    async def ask():
        batcher = Batcher(np.stack, Batching(), most_waiting=3)
        async with batcher.running():
            with pytest.raises(TooBusy):
                await batcher.rows([np.array(0)] * 4)
            return await batcher.rows([np.array(0)] * 3)

    assert len(asyncio.run(ask())) == 3


def test_being_too_busy_is_a_503_that_says_when_to_come_back(pictures, monkeypatch):
    async def refuse(*_):
        raise TooBusy

    monkeypatch.setattr(Batcher, "rows", refuse)
    response = pictures.post("/predict", json={"inputs": [LIGHT]})
    refused(response, 503, "too many wait")
    assert response.headers["retry-after"] == "1"


# ------------------------------------------------------------- a real process


@contextmanager
def serving(*arguments):
    """Start the service, and yield its process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.serving", *map(str, arguments), "--bind", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, line.split()[3]
    finally:
        process.kill()
        process.communicate()


def test_a_process_answers_many_at_once_and_ends_after_the_last_answer(tmp_path):
    path = write_classifier(tmp_path / "tiny.onnx")
    # So long is what is asked last unanswered, while others might join it.
    with serving(path, "--batch-wait", 300) as (process, url), httpx.Client() as client:

        def ask(value):
            example = np.full((1, 2, 2), value).tolist()
            return labels(client.post(f"{url}/predict", json={"inputs": [example]}))

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(ask, [1, -1] * 8)) == [["light"], ["dark"]] * 8
            last = threads.submit(ask, 1)
            address = httpx.URL(url)
            # An answer to what was asked after it: the last has arrived.
            with socket.create_connection((address.host, address.port)) as other:
                other.sendall(
                    b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                )
                assert other.makefile().read().startswith("HTTP/1.1 200")
            process.send_signal(signal.SIGTERM)
            assert last.result() == ["light"]
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_wrong_arguments_end_with_status_2_and_a_line(tmp_path, monkeypatch, capsys):
    from scripts.serving.__main__ import main

    model = write_classifier(tmp_path / "tiny.onnx")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, said in (
            ([], "the following arguments are required: model"),
            ([tmp_path / "none.onnx"], "none.onnx: No such file or directory"),
            ([tmp_path], "is a folder; of a run, ./scripts/export"),
            ([model, "--bind", "7080"], "is not HOST:PORT"),
            ([model, "--bind", "localhost:99999"], "is not HOST:PORT"),
            ([model, "--bind", f"127.0.0.1:{port}"], "can't listen on"),
            ([model, "--threads", "0"], "is not a whole number"),
            ([model, "--max-batch", "1.5"], "is not a whole number"),
            ([model, "--batch-wait", "nan"], "is not a number from 0 to 1000"),
        ):
            monkeypatch.setattr("sys.argv", ["serve", *map(str, arguments)])
            assert main() == 2
            out, err = capsys.readouterr()
            assert (out, len(err.splitlines())) == ("", 1)
            assert err.startswith("error: ")
            assert said in err
