"""The HTTP service: /predict, /model, /health, and a page that needs no internet.

Wrong input is answered by a 4xx with a line that says what is wrong. Knows nothing of how the
process starts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from common.errors import InputError
from common.pictures import MOST_PIXELS, open_pictures
from common.tasks.outputs import Answer, Label, Map, Share, Value
from scripts.serving.batching import Batcher, Batching, TooBusy
from scripts.serving.metadata import Metadata
from scripts.serving.model import Array, Model

T = TypeVar("T")

MOST_BYTES = 8 << 20
MOST_INPUTS = 256
# Of a response's maps; a place takes two bytes and more.
MOST_PLACES = 4 << 20
# JSON that is read in less time than it takes to hand it to a thread.
_SMALL_BYTES = 16 << 10
# That a request's body may take to arrive.
_BODY_SECONDS = 30.0
# Pictures decoded at a time: a large one takes 256 MB meanwhile.
_DECODERS = 2
# Requests whose inputs are decoded or wait for it.
_MOST_DECODING = 64
# Of a request's pictures.
_MOST_PIXELS_IN_ALL = 4 * MOST_PIXELS
# That a request's inputs may take to be decoded, once they have arrived.
_DECODE_SECONDS = 10.0
_LOOPBACK = "localhost", "127.0.0.1", "[::1]"


class Inputs(BaseModel):
    """What to answer, one or several."""

    model_config = ConfigDict(extra="forbid")

    inputs: list[Any] = Field(
        min_length=1,
        max_length=MOST_INPUTS,
        description="Of a model of text, strings or lists of tokens; of others, arrays as nested "
        "lists, of the shape and with the values that /model says.",
    )


class Predictions(BaseModel):
    """For each input its answers, the likeliest first; of numbers, all in their order.

    Of a map, each input's class at each place, too.
    """

    predictions: list[list[Answer | Value | Label | Share]]
    maps: list[Any] | None = None


class Health(BaseModel):
    """The service answers."""

    status: str


# Of a response, by what the outputs are.
_EXAMPLES = {
    "classes": '{"predictions": [[{"label": "7", "probability": 0.98}, …], …]}',
    "next_symbol": '{"predictions": [[{"label": "the", "probability": 0.1}, …], …]}',
    "values": '{"predictions": [[{"label": "price", "value": 12.5, "unit": "EUR"}, …], …]}',
    "labels": '{"predictions": [[{"label": "dog", "probability": 0.9, "holds": true}, …], …]}',
    "map": '{"predictions": [[{"label": "sky", "share": 0.4}, …], …], "maps": [[[0, 1, …], …], …]}',
}


class _Parts(MultiPartParser):
    # In memory: the whole body is bounded, and there may be no disk to write to.
    spool_max_size = MOST_BYTES + 1


def create_app(model: Model, metadata: Metadata, batching: Batching) -> FastAPI:
    """Return the service of one model."""
    batcher = Batcher(model.predict, batching)
    decoders = _Decoders()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher.running():
            yield

    app = FastAPI(
        title=f"{metadata.task}, round {metadata.round}",
        description=f"The model of run {metadata.run_id}.",
        version=metadata.sha256[:12],
        lifespan=lifespan,
        # FastAPI's own page loads its scripts from a server on the internet.
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(_refuse_other_sites)],
    )
    _explain_errors(app)

    @app.get("/health")
    async def health() -> Health:
        """Say that the service answers."""
        return Health(status="ok")

    @app.get("/model")
    async def about() -> Metadata:
        """Say what the model is, where it comes from, and what it takes."""
        return metadata

    @app.post(
        "/predict",
        openapi_extra=_request_body(model),
        response_description="For each input its answers: " + _EXAMPLES[model.outputs.kind],
        response_model_exclude_none=True,
        responses=_ERRORS,
    )
    async def predict(
        request: Request, top: Annotated[int, Query(ge=1, le=1000)] = 3
    ) -> Predictions:
        """Answer the inputs in the body: JSON, a picture, or a form's picture files."""
        contents = await _body(request)

        async def answer() -> Predictions:
            examples = await _examples(request, contents, model, decoders)
            found = await batcher.rows(examples)
            return await asyncio.to_thread(_predictions, model, found, top)

        return await _unless_gone(request, answer())

    @app.get("/docs", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(Path(__file__).with_name("page.html"))

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    return app


def _predictions(model: Model, found: Sequence[Array], top: int) -> Predictions:
    maps = None
    if isinstance(model.outputs, Map):
        places = sum(row[0].size for row in found)
        if places > MOST_PLACES:
            raise InputError(
                f"the answers have {places:,} places, at most {MOST_PLACES:,} are sent; send "
                "fewer inputs at once"
            )
        maps = [model.places(row) for row in found]
    return Predictions(predictions=[list(model.answers(row, top)) for row in found], maps=maps)


class _Decoders:
    """Threads that decode inputs, for a bounded time and a bounded number of requests."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_DECODERS, "decode")
        self._requests = 0

    async def run(self, decode: Callable[[Callable[[], None]], T]) -> T:
        """Return what `decode` returns, which calls what it gets as often as it can.

        It ends early when its time is over, and when the task that waits here is cancelled.

        Raises:
            TooBusy: its time is over, or too many wait.
        """
        if self._requests == _MOST_DECODING:
            raise TooBusy
        unwanted = threading.Event()
        until = time.monotonic() + _DECODE_SECONDS

        def check() -> None:
            if unwanted.is_set() or time.monotonic() > until:
                raise TooBusy(
                    f"the inputs are not decoded in {_DECODE_SECONDS:.0f} s; send fewer, or "
                    "smaller ones"
                )

        def run() -> T:
            check()
            return decode(check)

        self._requests += 1
        running = asyncio.get_running_loop().run_in_executor(self._threads, run)
        # Not before its thread has ended.
        running.add_done_callback(self._end)
        try:
            return await asyncio.shield(running)
        finally:
            unwanted.set()

    def _end(self, ended: asyncio.Future[Any]) -> None:
        self._requests -= 1
        # What nobody waits for may have failed.
        ended.exception()


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Return an answer to a request whose body is read; give up when its sender hangs up."""
    answering = asyncio.ensure_future(answer)
    # After the body, nothing else comes.
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise HTTPException(400, "the sender hung up")
        return await answering
    finally:
        answering.cancel()
        gone.cancel()


async def _refuse_other_sites(request: Request) -> None:
    """Refuse what a page of another site lets its reader's browser send.

    Raises:
        HTTPException: 403.
    """
    headers = request.headers
    host = headers.get("host", "")
    address, _ = request.scope.get("server") or ("", 0)
    if _is_loopback(address) and re.sub(r":\d*$", "", host).lower() not in _LOOPBACK:
        # Whoever owns a name can let it lead here.
        raise HTTPException(
            403, f"Host {host!r}: on loopback it must be localhost or 127.0.0.1; let a proxy say so"
        )
    if request.method != "POST":
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    own = origin is None or origin.partition("://")[2] == host
    if not (own if site is None else site in ("same-origin", "none")):
        raise HTTPException(403, "a page of another site may not send this")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


async def _examples(
    request: Request, contents: bytes, model: Model, decoders: _Decoders
) -> list[Array]:
    """Return the inputs of a request's body."""
    match _content_type(request):
        case "application/json" if len(contents) <= _SMALL_BYTES:
            return _of_json(model, contents)
        case "application/json":
            return await decoders.run(lambda check: _of_json(model, contents, check))
        case "multipart/form-data":
            pictures = await _files(request, contents)
        case kind if kind.startswith("image/"):
            pictures = [contents]
        case kind:
            raise HTTPException(
                415,
                f"Content-Type {kind or 'is missing'}: send application/json, a picture as "
                "image/png or the like, or multipart/form-data with picture files",
            )
    return await decoders.run(lambda check: _of_pictures(model, pictures, check))


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _body(request: Request) -> bytes:
    """Return the body; one that is too long isn't read to its end."""
    too_long = HTTPException(413, f"a body has at most {MOST_BYTES >> 20} MiB")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MOST_BYTES:
        raise too_long
    content = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MOST_BYTES:
                    raise too_long
    except TimeoutError as error:
        raise HTTPException(408, f"no whole body in {_BODY_SECONDS:.0f} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the body was cut off") from error
    return bytes(content)


def _of_json(model: Model, content: bytes, check: Callable[[], None] = lambda: None) -> list[Array]:
    try:
        inputs = Inputs.model_validate_json(content).inputs
    except ValidationError as error:
        raise InputError(_first(error.errors())) from error
    examples = []
    for value in inputs:
        check()
        examples.append(model.of_text(value) if isinstance(value, str) else model.of_array(value))
    return examples


def _of_pictures(model: Model, contents: Sequence[bytes], check: Callable[[], None]) -> list[Array]:
    if model.takes != "pictures":
        raise InputError(f"this model takes {model.takes}, not pictures; send it as JSON")
    examples = []
    for decode in open_pictures(contents, most_in_all=_MOST_PIXELS_IN_ALL, check=check):
        check()
        examples.append(model.of_picture(decode()))
    return examples


async def _files(request: Request, content: bytes) -> list[bytes]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield content

    try:
        form = await _Parts(
            request.headers, stream(), max_files=MOST_INPUTS, max_fields=MOST_INPUTS
        ).parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form can't be read: {error.message}") from error
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise InputError("the form has no file")
        return [await file.read() for file in files]
    finally:
        await form.close()


class _Error(BaseModel):
    detail: str


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": _Error, "description": "The body was cut off, or is no form."},
    403: {"model": _Error, "description": "A page of another site sent it."},
    408: {"model": _Error, "description": "The body took too long."},
    413: {"model": _Error, "description": "The body is too long."},
    415: {"model": _Error, "description": "The body is of no known type."},
    422: {"model": _Error, "description": "The inputs are not what the model takes."},
    503: {"model": _Error, "description": "Too many requests wait; try again in a second."},
}


def _explain_errors(app: FastAPI) -> None:
    @app.exception_handler(InputError)
    async def wrong(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": _first(error.errors())}, 422)

    @app.exception_handler(TooBusy)
    async def busy(_: Request, error: TooBusy) -> JSONResponse:
        return JSONResponse({"detail": str(error) or "too many wait"}, 503, {"Retry-After": "1"})


def _first(errors: Sequence[Any]) -> str:
    """Return one line about the first of pydantic's errors."""
    error = errors[0]
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}".removeprefix(": ")


def _request_body(model: Model) -> dict[str, Any]:
    """Return what OpenAPI says of the bodies that /predict reads, with an example."""
    example: Any = "ab"
    if model.takes != "text":
        sizes = [size if isinstance(size, int) else 1 for size in model.shape or ()]
        # Too long a one would only be scrolled over.
        small = math.prod(sizes) <= 100
        example = _nested(sizes) if small else f"nested lists of shape {list(model.shape or ())}"
    picture = {"type": "string", "format": "binary"}
    content: dict[str, Any] = {
        "application/json": {
            "schema": Inputs.model_json_schema(),
            "example": {"inputs": [example]},
        }
    }
    if model.takes == "pictures":
        form = {"type": "object", "properties": {"file": {"type": "array", "items": picture}}}
        content |= {
            "image/*": {"schema": picture},
            "multipart/form-data": {"schema": form},
        }
    return {"requestBody": {"required": True, "content": content}}


def _nested(sizes: Sequence[int]) -> Any:  # noqa: ANN401
    return [_nested(sizes[1:]) for _ in range(sizes[0])] if sizes else 0.0
