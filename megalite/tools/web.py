"""OpenAI's API over a service: routes, streams, and errors in OpenAI's form."""

import asyncio
import hmac
import json
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from megalite.errors import tell
from megalite.generation.desk import DeskFull, DeskStopped
from megalite.generation.scores import Scored
from megalite.tools.openai_bodies import (
    Asked,
    ChatBody,
    Choice,
    CompletionBody,
    Form,
    Refused,
    parsed,
    usage_of,
)
from megalite.tools.service import STOPPING, Event, Service
from megalite.tools.token_scores import TokenScore

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_S = 2  # for clients that don't read what they asked for, once all is answered
PAUSE_S = 0.05
GONE = "the client has gone"
Handler = Callable[[Request], Awaitable[Response]]
BodyT = TypeVar("BodyT", bound=Asked)


def application(service: Service) -> Starlette:
    """The routes of a service."""

    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service.name)]})

    async def model(request: Request) -> Response:
        _check_name(service, request.path_params["name"])
        return JSONResponse(_model(service.name))

    async def chat(request: Request) -> Response:
        return await _answer(service, request, ChatBody)

    async def completions(request: Request) -> Response:
        return await _answer(service, request, CompletionBody)

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "stopping" if service.is_ending else "ok"})

    def keyed(handler: Handler) -> Handler:
        async def checked(request: Request) -> Response:
            _check_key(service, request)
            return await handler(request)

        return checked

    return Starlette(
        routes=[
            Route("/v1/models", keyed(models)),
            Route("/v1/models/{name:path}", keyed(model)),
            Route("/v1/chat/completions", keyed(chat), methods=["POST"]),
            Route("/v1/completions", keyed(completions), methods=["POST"]),
            Route("/health", health),
        ],
        exception_handlers={Refused: _refusal, HTTPException: _no_route, Exception: _fault},
    )


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "megalite"}


def _error(status: int, body: dict[str, Any]) -> JSONResponse:
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse({"error": body}, status, headers)


async def _refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _error(error.status, error.body)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _error(error.status_code, Refused(error.status_code, message).body)


async def _fault(_request: Request, error: Exception) -> Response:
    message = f"{type(error).__name__}: {error}"
    return _error(500, Refused(500, message, kind="server_error").body)


def _check_key(service: Service, request: Request) -> None:
    if not service.api_key:
        return
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {service.api_key}".encode()):
        raise Refused(
            401, "the API key is missing or wrong", code="invalid_api_key", kind="authentication"
        )


def _check_name(service: Service, name: str) -> None:
    if name != service.name:
        raise Refused(
            404,
            f"The model {name!r} is not here; this server has {service.name!r}",
            param="model",
            code="model_not_found",
        )


async def _body(service: Service, request: Request) -> bytes:
    """A request's body, as far as it is small enough and comes in time."""
    most = service.limits.body_bytes

    async def read() -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise Refused(413, f"the body has more than the {most} bytes that are allowed")
            parts.append(part)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(read(), service.limits.body_s)
    except ClientDisconnect:
        raise Refused(499, GONE) from None
    except asyncio.TimeoutError:
        raise Refused(408, f"the body did not come in {service.limits.body_s:g} s") from None


async def _answer(service: Service, request: Request, kind: type[BodyT]) -> Response:
    asked = parsed(kind, await _body(service, request))
    _check_name(service, asked.model)
    if service.is_ending:
        raise Refused(503, STOPPING, kind="server_error")
    answering = Answering(service, asked)
    form = Form(service.name, kind is ChatBody, asked.likeliest is not None)
    if asked.stream:
        options = asked.stream_options
        stream = _streamed(answering, form, options is not None and options.include_usage)
        return StreamingResponse(stream, media_type="text/event-stream")
    await _collected(request, answering)
    return JSONResponse(form.whole(answering.choices, answering.usage))


class Answering:
    """The answers to one request, on their way from the desk's thread to the event loop.

    Attributes:
        choices: the answers.
    """

    def __init__(self, service: Service, asked: Asked) -> None:
        """Order the answers.

        Raises:
            Refused: the request can't be answered, or too many wait.
        """
        self._service, loop = service, asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._until = loop.time() + service.limits.request_s

        def give(number: int, event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        self._orders, self._num_read = service.orders(asked, give)
        begun = [text for text in service.begun(asked) for _ in range(asked.n or 1)]
        self.choices = [Choice(text) for text in begun]
        self._scores = [service.scores(len(text)) for text in begun]
        try:
            service.desk.ask(self._orders)
        except DeskFull as error:
            raise Refused(429, f"{error}: ask again later", code="queue_full") from None
        except DeskStopped as error:
            raise Refused(503, str(error), kind="server_error") from None

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        return usage_of(self._num_read, self.choices)

    async def events(self) -> AsyncIterator[tuple[int, Choice]]:
        """The next part of an answer and its number; the last one has no text, and how it ended.

        Raises:
            Refused: the answers took too long, failed, or the server stops.
        """
        num_open = len(self.choices)
        while num_open:
            number, event = await self._next()
            choice, scores = self.choices[number], self._scores[number]
            if isinstance(event, Scored):
                scores.add(event)
                continue
            if isinstance(event, str):
                choice.text += event
                yield number, self._part(choice, event, scores.until(len(choice.text)))
                continue
            if event.reason not in ("stop", "length"):
                status = 500 if event.reason == "failed" else 503
                raise Refused(status, event.why or "the answer was ended", kind="server_error")
            num_open -= 1
            choice.finish = "stop" if event.reason == "stop" else "length"
            choice.num_tokens = event.num_tokens
            rest = scores.until() if choice.finish == "length" else []
            yield number, self._part(choice, "", rest)

    @staticmethod
    def _part(choice: Choice, text: str, scores: list[TokenScore]) -> Choice:
        """The next part of an answer, whose scores it then has."""
        choice.scores += scores
        return Choice(text, None if text else choice.finish, scores=scores)

    async def _next(self) -> tuple[int, Event]:
        left = self._until - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(self._events.get(), max(left, 0))
        except asyncio.TimeoutError:
            seconds = self._service.limits.request_s
            raise Refused(
                504, f"the answer took longer than {seconds:g} s", kind="server_error"
            ) from None

    def close(self) -> None:
        """End the answers that have not ended."""
        pairs = zip(self._orders, self.choices, strict=True)
        if still_open := [order for order, choice in pairs if choice.finish is None]:
            self._service.desk.close(still_open)


async def _collected(request: Request, answering: Answering) -> None:
    """Wait for whole answers, or until the client has gone."""

    async def collect() -> None:
        async for _ in answering.events():
            pass

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(collect()), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
        else:
            raise Refused(499, GONE)
    finally:
        answering.close()
        for task in tasks:
            task.cancel()


async def _streamed(answering: Answering, form: Form, with_usage: bool) -> AsyncIterator[str]:
    """Answers as server-sent events; an error is the last of them."""
    try:
        if form.is_chat:
            for number in range(len(answering.choices)):
                yield _event(form.opening(number))
        for number, choice in enumerate(answering.choices):
            if choice.text:
                yield _event(form.chunk(number, Choice(choice.text)))
        async for number, part in answering.events():
            yield _event(form.chunk(number, part))
        if with_usage:
            yield _event(form.last(answering.usage))
        yield "data: [DONE]\n\n"
    except Refused as error:
        yield _event({"error": error.body})
    finally:
        answering.close()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def serve(service: Service, listener: socket.socket) -> None:
    """Serve HTTP until a signal comes and what runs has ended, or was told to.

    Args:
        service: answers.
        listener: bound to the address.
    """
    options = uvicorn.Config(
        application(service),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=PATIENCE_S,
    )
    Server(options, service, listener).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn's, which says where it is and lets answers end."""

    def __init__(self, config: uvicorn.Config, service: Service, listener: socket.socket) -> None:
        """Serve a service at a socket."""
        super().__init__(config)
        self._service, self._listener = service, listener
        self._ending: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server, and put back what was there before."""
        loop = asyncio.get_running_loop()
        is_main = threading.current_thread() is threading.main_thread()
        caught = SIGNALS if is_main else ()
        before = [signal.getsignal(number) for number in caught]
        for number in caught:
            loop.add_signal_handler(number, self.end)
        try:
            yield
        finally:
            for number, handler in zip(caught, before, strict=True):
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where."""
        await super().startup(sockets)
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        tell(f"serves {self._service.name} at http://{shown}:{port}/v1; Ctrl-C ends it")

    def end(self) -> None:
        """End once what runs has ended; called again, end at once."""
        service = self._service
        if service.is_ending:
            service.desk.stop(STOPPING)
            return
        service.is_ending = True
        if running := service.desk.num_orders:
            tell(f"stopping; {running} running answers have {service.limits.stop_s:g} s")
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        desk, loop = self._service.desk, asyncio.get_running_loop()
        until = loop.time() + self._service.limits.stop_s
        while desk.num_orders and loop.time() < until:
            await asyncio.sleep(PAUSE_S)
        if desk.num_orders:
            tell(f"{desk.num_orders} answers are cut, and their clients told")
        desk.stop(STOPPING)
        self.should_exit = True
