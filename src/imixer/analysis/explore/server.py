"""Serve the page about a run, on this machine alone: HTTP in, `Explorer` and `digit_recall` do the work.

Nothing is served by its path: a page, numbers, and images of the run's data by their number.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from imixer.analysis.explore.digit_recall import recall_digit, spoil_digit, stored_digits
from imixer.analysis.explore.explorer import LARGEST_UPLOAD, Explorer
from imixer.analysis.explore.loopback import is_local_name
from imixer.errors import InputError, in_short
from imixer.escaping import middle_cut
from imixer.reading import parse_json

T = TypeVar("T")
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

_PAGE = Path(__file__).with_name("explore.html")
_LARGEST_JSON = 2**16  # bytes
_LONGEST_LINE = 400  # characters of a message, which may name what was sent
_PATIENCE_S = 2  # for answers under way when the server is stopped


def serve(explorer: Explorer, opened: socket.socket) -> None:
    """Serve the page until Ctrl-C.

    Args:
        explorer: The run.
        opened: A listening socket, see `imixer.analysis.explore.loopback.listen`.
    """
    config = uvicorn.Config(
        application(explorer),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_PATIENCE_S,
    )
    try:
        uvicorn.Server(config).run(sockets=[opened])
    except KeyboardInterrupt:  # which uvicorn raises again once all is closed
        return


def application(explorer: Explorer) -> _App:
    """Build the ASGI application of a run, which answers to names of this machine alone.

    Args:
        explorer: The run.
    """
    worker = ThreadPoolExecutor(1)  # a model has one setting at a time

    async def computed(work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(worker, work)

    async def page(request: Request) -> Response:
        return Response(_PAGE.read_bytes(), media_type="text/html")

    async def facts(request: Request) -> Response:
        return JSONResponse(await computed(lambda: explorer.facts))

    async def inspect(request: Request) -> Response:
        upload = await _upload(request)
        held_out, n_iter, block = (_whole(request, name) for name in ("held_out", "n_iter", "block"))
        tolerance = _number(request, "tolerance")
        return JSONResponse(await computed(lambda: explorer.inspect(upload, held_out, n_iter, tolerance, block)))

    async def nearest(request: Request) -> Response:
        upload, held_out = await _upload(request), _whole(request, "held_out")
        return JSONResponse(await computed(lambda: explorer.nearest(upload, held_out)))

    async def thumbnail(request: Request) -> Response:
        split, place = request.path_params["split"], _read_whole("place", request.path_params["place"])
        return Response(await computed(lambda: explorer.thumbnail(split, place)), media_type="image/png")

    async def digits(request: Request) -> Response:
        kind, stored = request.query_params.get("kind", "modern"), _whole(request, "stored")
        return JSONResponse(asdict(await computed(lambda: stored_digits(kind, 20 if stored is None else stored))))

    async def spoil(request: Request) -> Response:
        return await _of_picture(request, spoil_digit, {"kind": str, "noise": float, "mask": str, "seed": int})

    async def recall(request: Request) -> Response:
        return await _of_picture(request, recall_digit, {"known": list, "kind": str, "stored": int, "motion": str})

    async def _of_picture(request: Request, work: Callable[..., Any], kinds: dict[str, type]) -> Response:
        text = (await _body(request, _LARGEST_JSON)).decode("utf-8", "replace")
        asked = _checked(parse_json(text, "what was sent"), kinds)
        return JSONResponse(asdict(await computed(lambda: work(**asked))))

    starlette = Starlette(
        routes=[
            Route("/", page),
            Route("/memory", page),
            Route("/api/facts", facts),
            Route("/api/inspect", inspect, methods=["POST"]),
            Route("/api/nearest", nearest, methods=["POST"]),
            Route("/api/image/{split}/{place}.png", thumbnail),
            Route("/api/digits", digits),
            Route("/api/spoil", spoil, methods=["POST"]),
            Route("/api/recall", recall, methods=["POST"]),
        ],
        exception_handlers={InputError: _refused, 404: _not_found, Exception: _failed},
    )
    return _guarded(starlette, _policy())


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"problem": in_short(error, _LONGEST_LINE)}, 400)


async def _not_found(request: Request, error: Exception) -> Response:
    return JSONResponse({"problem": "there is no such page"}, 404)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"problem": f"that failed ({type(error).__name__}); the terminal tells more"}, 500)


async def _body(request: Request, most: int) -> bytes:
    """Read the body. Whatever is beyond the limit is read and thrown away, so that the answer arrives."""
    body = bytearray()
    async for chunk in request.stream():
        if len(body) <= most:
            body += chunk
    if len(body) > most:
        size = f"{most // 2**20} MB" if most >= 2**20 else f"{most // 2**10} kB"
        raise InputError(f"what was sent is larger than {size}; give less")
    return bytes(body)


async def _upload(request: Request) -> bytes | None:
    """Return the image file that was sent; None where a held-out image is named instead."""
    body = await _body(request, LARGEST_UPLOAD)
    return None if "held_out" in request.query_params else body


def _whole(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    return None if text is None else _read_whole(name, text)


def _read_whole(name: str, text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise InputError(f"{name} is {middle_cut(text, 40)}; give a whole number")
    return int(text)


def _number(request: Request, name: str) -> float | None:
    text = request.query_params.get(name)
    try:
        return None if text is None else float(text)
    except ValueError:
        raise InputError(f"{name} is {middle_cut(text or '', 40)}; give a number") from None


def _checked(asked: Any, kinds: dict[str, type]) -> dict[str, Any]:
    """Check the names and types of what was asked in JSON; the values check themselves."""
    kinds = {"picture": list, **kinds}
    if not isinstance(asked, dict) or "picture" not in asked:
        raise InputError("no picture is given; give a JSON object with a picture of 64 numbers")
    for name, value in asked.items():
        kind = kinds.get(name)
        if kind is None:
            raise InputError(f"there is no {middle_cut(name, 40)}; choose from {', '.join(kinds)}")
        fits = type(value) in ((int, float) if kind is float else (kind,))
        if not fits and not (name == "known" and value is None):
            raise InputError(f"{name} is no {kind.__name__}; give one")
    return asked


def _policy() -> str:
    """Allow the page its own script, its own styles, and requests to this server."""
    script = re.search(r"<script>(.*?)</script>", _PAGE.read_text("utf-8"), re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _guarded(app: Any, policy: str) -> _App:
    """Wrap an application: refuse requests in another name or from another site, and tell browsers what is allowed."""
    added = {
        b"content-security-policy": policy.encode(),
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
        b"cache-control": b"no-store",
    }

    async def guarded(scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added.items()]
            await send(message)

        headers = dict(scope["headers"])
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if not is_local_name(_split(f"//{host}").hostname or "") or (origin and _split(origin).netloc != host):
            refusal = JSONResponse({"problem": "this page is for this machine alone"}, 403)
            await refusal(scope, receive, with_headers)
        else:
            await app(scope, receive, with_headers)

    return guarded


def _split(url: str) -> SplitResult:
    """Split an address into its parts, which all are empty where it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
