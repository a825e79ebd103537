"""The web service around a model: its routes, its two lanes of work, and the HTTP server that carries them.

Behind the `Guard`, an upload becomes an answer in three steps: the form is parsed in memory, the picture is decoded in
the `sandbox`, and one thread computes what `inference.Predictor` says, one picture after another. So /livez answers at
once whatever is computed, and an answer depends on nothing but its picture. It starts with `serving`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import html
import io
import json
import os
import re
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import h11
import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from PIL import Image
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from patholib import __version__
from patholib.base import pages
from patholib.base.errors import PathoError
from patholib.data import decoding
from patholib.deploy.inference import Predictor
from patholib.deploy.server.guard import Guard, Limits, Refusal
from patholib.deploy.server.sandbox import Decoder, Picture
from patholib.judge import gradcam
from patholib.model import augment

FIELD = "file"  # of the form
BATCH = 16  # pictures in one request
COSTS = {"/predict": 1, "/predict/batch": 8, "/explain": 4}  # units of work, see `Limits.units`
MORE = {b"tta": 4, b"explain": 3}  # units that a query adds
OPEN = ("/", "/livez", "/readyz", "/health")  # without a token: a probe has none, and the page asks for it
ROUTES = (*OPEN, *COSTS, "/model", "/metrics", "/openapi.json", "/docs")
HEAD_SECONDS = 5.0  # for the head of a request, from its first byte or from the connection
KEEP_SECONDS = 5  # for the next request on a connection
STUCK_SECONDS = 20.0  # in which a client reads nothing of its answer
CONNECTIONS = 512
JET = (((0.35, 0.66, 0.89, 1), (0, 1, 1, 0.5)), ((0.125, 0.375, 0.64, 0.91), (0, 1, 1, 0)),
       ((0, 0.11, 0.34, 0.65), (0.5, 1, 1, 0)))  # matplotlib's: where red, green and blue turn, and their values there
PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Settings:
    """How one server is to behave."""

    token: str | None = None
    origins: tuple[str, ...] = ()  # of other sites whose pages may ask
    docs: bool = True
    max_pixels: int = decoding.MAX_PIXELS
    decode_seconds: float = 10.0
    drain: float = 1.0  # seconds of "not ready" before the port closes
    limits: Limits = field(default_factory=Limits)


# --- what is answered ---


class Problem(BaseModel):
    """Why there is no result."""

    code: str = Field(description="stable, for programs", examples=["not_an_image"])
    reason: str
    remedy: str


class Model(BaseModel):
    sha256: str = Field(description="of the weights")
    run: str


class Heatmap(BaseModel):
    png: str = Field(description="the picture under its heat, as a data URL")
    of: str = Field(description="the class that the heat argues for")
    blank: bool = Field(description="nothing argues for it: the picture is shown as it is")


class Reply(BaseModel):
    """What the model says of one picture."""

    decision: str = Field(description="by the threshold, or the largest probability, or that over a locked share")
    probabilities: dict[str, float] = Field(description="calibrated, of every class; they sum to 1")
    threshold: float | None = Field(description="of the positive class, locked on validation images")
    alert: bool | None = Field(description="more than two classes: the positive one reaches its threshold")
    warnings: list[str] = Field(description="why to distrust this answer")
    tta: bool = Field(description="averaged over fixed views of the picture")
    model: Model
    demo: bool = Field(description="the model has seen nothing but generated images")
    notice: str
    heatmap: Heatmap | None = None


class Batch(BaseModel):
    """One entry for every picture, in their order."""

    answers: list[Reply | Problem]


class Health(BaseModel):
    status: str
    model_loaded: bool
    device: str


# --- the work ---


class Service:
    """One model for many callers, and whether it is ready for them."""

    def __init__(self, predictor: Predictor, settings: Settings):
        self.predictor, self.settings = predictor, settings
        self.draining, self.reason = False, "is starting"
        self.decoded = self.computed = 0
        manifest = predictor.manifest
        self.model = {"sha256": manifest["weights"]["sha256"], "run": manifest["run"]}

    @contextlib.asynccontextmanager
    async def lifespan(self, _app) -> AsyncIterator[None]:
        """Decoder, lanes and a first answer before anybody asks; what is admitted is computed before all is closed."""
        recipe = self.predictor.recipe
        self.decoder = Decoder(recipe.cache_size, recipe.fit, self.settings.max_pixels, self.settings.decode_seconds)
        self.eye, self.brain = (ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("decode", "compute"))
        try:
            await self._warm_up()
            yield
        finally:
            for lane in (self.eye, self.brain):
                lane.shutdown(cancel_futures=True)
            self.decoder.close()

    async def _warm_up(self) -> None:
        content = io.BytesIO()
        Image.fromarray(noise(self.predictor)).save(content, "png")
        await self.answer(content.getvalue(), tta=False, explain=True)
        self.reason = ""

    @property
    def ready(self) -> bool:
        return not self.draining and not self.reason

    async def answer(self, content: bytes, tta: bool, explain: bool) -> dict:
        """The `Reply` to one uploaded picture."""
        picture = await self._decode(content)
        return await self._compute(self._answer, picture, tta, explain)

    async def heatmap(self, content: bytes) -> tuple[bytes, str, bool]:
        """A picture under its heat as PNG, the class that it argues for, and whether nothing argues for it."""
        picture = await self._decode(content)
        return await self._compute(self._heatmap, picture, None)

    async def _decode(self, content: bytes) -> Picture:
        picture = await asyncio.get_running_loop().run_in_executor(self.eye, self.decoder, content)
        self.decoded += 1
        return picture

    async def _compute(self, work, *arguments):
        try:
            found = await asyncio.get_running_loop().run_in_executor(self.brain, work, *arguments)
        except PathoError as error:
            if error.code == "model_output":
                self.reason = "gave numbers that are not finite"
            raise
        self.computed += 1
        return found

    def _answer(self, picture: Picture, tta: bool, explain: bool) -> dict:
        warnings = self.predictor.oddities(picture.size, picture.notes)
        said = self.predictor.answer(picture.pixels, tta, warnings)
        manifest = self.predictor.manifest
        reply = {"decision": said.decision, "probabilities": said.probs, "threshold": said.threshold,
                 "alert": said.alert, "warnings": list(said.warnings), "tta": said.tta, "model": self.model,
                 "demo": manifest["demo"], "notice": manifest["notice"]}
        if explain:
            png, of, blank = self._heatmap(picture, said.decision)
            reply["heatmap"] = {"png": pages.data_url(png, "png"), "of": of, "blank": blank}
        return reply

    def _heatmap(self, picture: Picture, of: str | None) -> tuple[bytes, str, bool]:
        pixels, size = picture.pixels[None], self.predictor.recipe.image_size
        of = of or self.predictor.answer(picture.pixels).decision
        heat = self.predictor.heat(pixels, [self.predictor.classes.index(of)])
        share = gradcam.upsample(gradcam.normalise(heat.maps), size)[0].numpy()
        seen = augment.plain_views(pixels, size)[0].permute(1, 2, 0).mul(255).round().numpy().astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(overlay(seen, share)).save(stream, "png")
        return stream.getvalue(), of, bool(heat.blank[0])


def noise(predictor: Predictor) -> np.ndarray:
    """A picture (S, S, 3) uint8 to warm up with."""
    size = predictor.recipe.cache_size
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


def overlay(picture: np.ndarray, heat: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """A picture (H, W, 3) uint8 under the colours of its heat (H, W) in [0, 1]; as it is where there is none.

    As `figures.overlay`, without matplotlib, which wants a folder it may write to.
    """
    if not heat.any():
        return picture
    colours = np.stack([np.interp(heat, places, values) for places, values in JET], axis=-1) * 255  # (H, W, 3)
    return np.rint((1 - opacity) * picture + opacity * colours).astype(np.uint8)


# --- the routes ---

EXAMPLE = {"decision": "benign", "probabilities": {"benign": 0.83, "malignant": 0.17}, "threshold": 0.31, "alert": None,
           "warnings": [], "tta": False, "model": {"sha256": "9f86d081884c7d65...", "run": "20260101-120000-breakhis"},
           "demo": False, "notice": "For research use only."}
PROBLEMS = {401: "The token is missing or wrong", 408: "The upload took too long",
            413: "The upload is too large", 415: "No multipart form",
            422: "No picture that can be used, or a bad query",
            500: "The model gave no finite numbers", 503: "Busy: send it again after Retry-After seconds"}


def form(several: bool = False) -> dict:
    """The OpenAPI of a form with one picture, or several."""
    one = {"type": "string", "format": "binary", "description": "PNG, JPEG, BMP, TIFF or WebP"}
    schema = {"type": "array", "items": one, "minItems": 1, "maxItems": BATCH} if several else one
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
        "type": "object", "required": [FIELD], "properties": {FIELD: schema}, "additionalProperties": False}}}}}


def answers(ok: dict, *codes: int) -> dict:
    return {200: ok} | {code: {"model": Problem, "description": PROBLEMS[code]} for code in codes or PROBLEMS}


def routes(service: Service, settings: Settings) -> FastAPI:
    """The app without its guard."""
    api = FastAPI(title="PathoVision", version=__version__, lifespan=service.lifespan, docs_url=None, redoc_url=None,
                  openapi_url="/openapi.json" if settings.docs else None, redirect_slashes=False,
                  description=service.predictor.manifest["notice"])
    body = settings.limits.body

    @api.post("/predict", openapi_extra=form(), responses=answers(
        {"model": Reply, "content": {"application/json": {"example": EXAMPLE}}}))
    async def predict(request: Request, tta: bool = False, explain: bool = False):
        """What the model says of one picture; tta: averaged over fixed views; explain: with a heatmap."""
        _stop_on_unknown(request, "tta", "explain")
        (content,) = await uploads(request, 1, body)
        return JSONResponse(await service.answer(content, tta, explain))

    @api.post("/predict/batch", openapi_extra=form(several=True), responses=answers(
        {"model": Batch, "content": {"application/json": {"example": {"answers": [EXAMPLE]}}}}))
    async def batch(request: Request, tta: bool = False):
        """What the model says of each picture, or why that one cannot be used."""
        _stop_on_unknown(request, "tta")
        found = []
        for content in await uploads(request, BATCH, body):
            try:
                found.append(await service.answer(content, tta, explain=False))
            except PathoError as error:
                if status(error) != 422:
                    raise
                found.append(problem(error))
        return JSONResponse({"answers": found})

    @api.post("/explain", openapi_extra=form(), response_class=Response, responses=answers(
        {"content": {"image/png": {}}, "description": "The picture under its heat; X-Class names the class"}))
    async def explain(request: Request):
        """Where in the picture the evidence for the decision lies (Grad-CAM)."""
        _stop_on_unknown(request)
        (content,) = await uploads(request, 1, body)
        png, of, blank = await service.heatmap(content)
        return Response(png, media_type="image/png",
                        headers={"X-Class": quote(of, safe=""), "X-Blank": str(blank).lower()})

    @api.get("/health", responses={200: {"model": Health}})
    async def health():
        """Is the model loaded, and on what does it compute?"""
        return JSONResponse({"status": "healthy" if service.ready else "not ready", "model_loaded": True,
                             "device": "cpu"})

    @api.get("/livez", response_class=PlainTextResponse)
    async def livez():
        """The server answers."""
        return PlainTextResponse("ok")

    @api.get("/readyz", response_class=PlainTextResponse,
             responses={503: {"description": "Starting, stopping, or its model is broken", "content": {
                 "text/plain": {"schema": {"type": "string"}}}}})
    async def readyz():
        """The server takes on work."""
        reason = "is stopping" if service.draining else service.reason
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    @api.get("/model", responses=answers({"description": "The manifest of the model, and what this server allows",
                                          "content": {"application/json": {}}}, 401))
    async def model():
        """The model card: what the model is, and what this server takes."""
        limits = {"mib": body / 2**20, "megapixels": settings.max_pixels / 1e6, "batch": BATCH}
        return JSONResponse(service.predictor.manifest | {"engine": service.predictor.engine, "limits": limits})

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page():
        return HTMLResponse(PAGE.read_bytes(), headers={"Content-Security-Policy": policy(PAGE.read_text("utf-8"))})

    if settings.docs:
        @api.get("/docs", response_class=HTMLResponse, include_in_schema=False)
        async def docs():
            return HTMLResponse(pages.frame("PathoVision: the service", described(api.openapi())), headers={
                "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"})

    @api.exception_handler(Refusal)
    async def turned_away(_request, error: Refusal):
        return JSONResponse(error.body, error.status, headers=error.headers)

    @api.exception_handler(Exception)
    async def failed(_request, _error: Exception):  # raised again behind this answer: the guard writes it down
        return JSONResponse({"code": "internal", "reason": "failed in an unforeseen way",
                             "remedy": "Tell who runs the server the X-Request-ID of this answer"}, 500)

    @api.exception_handler(PathoError)
    async def refused(_request, error: PathoError):
        return JSONResponse(problem(error), status(error))

    @api.exception_handler(RequestValidationError)
    async def invalid(_request, error: RequestValidationError):
        names = {str(part) for found in error.errors() for part in found["loc"]} & {"tta", "explain"}
        return JSONResponse(problem(_bad_query(f"has a value of {' and '.join(sorted(names))} that is no yes or no")),
                            422)

    @api.exception_handler(HTTPException)
    async def nothing_there(_request, error: HTTPException):
        content = {"code": "not_found" if error.status_code == 404 else "bad_request",
                   "reason": f"is answered with {error.status_code} {error.detail}"[:80], "remedy": "See /docs"}
        return JSONResponse(content, error.status_code, headers=error.headers)

    return api


def problem(error: PathoError) -> dict:
    return {"code": error.code, "reason": error.reason, "remedy": error.remedy}


def status(error: PathoError) -> int:
    """The HTTP status of a refusal: the picture's fault, unless the model failed."""
    return 500 if error.code == "model_output" else 422


async def uploads(request: Request, most: int, body: int) -> list[bytes]:
    """The pictures of a form, parsed in memory: no upload is ever on disk. Names and types are not looked at.

    Errors: 415 no_form, 422 bad_form, bad_fields.
    """
    if not re.match(r"multipart/form-data\s*;", request.headers.get("content-type", ""), re.IGNORECASE):
        raise Refusal(415, "no_form", "is no multipart form", f"Send it so: curl -F {FIELD}=@picture.png")
    parser = MultiPartParser(request.headers, request.stream(), max_files=most, max_fields=0, max_part_size=1024)
    parser.spool_max_size = body + 1
    try:
        parts = (await parser.parse()).multi_items()
    except Exception as error:  # the parser lets anything through on a hostile character set
        raise Refusal(422, "bad_form", "has a form that cannot be read, or with other fields than its pictures",
                      _form(most)) from error
    found = []
    for name, value in parts:
        if isinstance(value, UploadFile):
            found.append(await value.read())
            await value.close()
        if name != FIELD:
            raise Refusal(422, "bad_fields", f"has a field that is not called {FIELD}", _form(most))
    if not found:
        raise Refusal(422, "bad_fields", "has no picture", _form(most))
    return found


def _form(most: int) -> str:
    return f"Send one file in the field {FIELD}" if most == 1 else f"Send 1 to {most} files, each in a field {FIELD}"


def _stop_on_unknown(request: Request, *known: str) -> None:
    if set(request.query_params) - set(known):  # not named: it may hold anything
        raise _bad_query(f"has parameters besides {' and '.join(known) or 'none'}")


def _bad_query(reason: str) -> PathoError:
    return PathoError("bad_parameter", "query", reason, "See /docs")


def policy(page: str) -> str:
    """The content security policy of a page: its own script and style by their digests, nothing from elsewhere."""
    def digests(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(f.encode()).digest()).decode()}'" for f in found)

    return (f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; img-src data: blob:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def described(schema: dict) -> str:
    """The routes of an OpenAPI schema as HTML, with an example of each; Swagger's own page comes from another site."""
    parts = [f"<h1>{html.escape(schema['info']['title'])}</h1><blockquote><p>"
             f"{html.escape(schema['info']['description'])}</p></blockquote><p>As OpenAPI: <a href='openapi.json'>"
             "openapi.json</a>. A server with a token wants the header <code>Authorization: Bearer TOKEN</code>.</p>"]
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            upload = f" -F {FIELD}=@sample.png" if "requestBody" in route else ""
            query = [f"<li><code>{html.escape(p['name'])}</code>: true or false</li>"
                     for p in route.get("parameters", ())]
            codes = [f"<tr><td>{code}</td><td>{html.escape(answer['description'])}</td></tr>"
                     for code, answer in route["responses"].items()]
            content = route["responses"]["200"].get("content", {})
            example = content.get("application/json", {}).get("example")
            shown = f"<pre>{html.escape(json.dumps(example, indent=1))}</pre>" if example else ""
            parts.append(f"<h2>{method.upper()} {path}</h2><p>{html.escape(route.get('description', ''))}</p>"
                         f"<p><code>curl -X {method.upper()} localhost:8000{path}{upload}</code></p>"
                         f"<ul>{''.join(query)}</ul>{shown}<div class='scroll'><table>{''.join(codes)}</table></div>")
    return "\n".join(parts)


# --- all together ---


def cost(scope: dict) -> int:
    """The units of work of a request, 0 for what is answered at once."""
    if scope["method"] != "POST" or scope["path"] not in COSTS:
        return 0
    return COSTS[scope["path"]] + sum(more for name, more in MORE.items() if name in scope["query_string"])


class Guarded:
    """The whole service as an ASGI app: routes, guard, and other sites' pages where they are allowed to ask."""

    def __init__(self, predictor: Predictor, settings: Settings):
        self.service, self.settings = Service(predictor, settings), settings
        api = routes(self.service, settings)
        self.guard = Guard(api, settings.limits, cost, ROUTES, settings.token, OPEN)

        @api.get("/metrics", response_class=PlainTextResponse, responses=answers(
            {"description": "Counts, in the text format of Prometheus"}, 401))
        async def metrics():
            """What was answered and how quickly."""
            return PlainTextResponse(self.guard.meter.text(self.gauges()), media_type="text/plain; version=0.0.4")

        self.app = self.guard if not settings.origins else CORSMiddleware(
            self.guard, allow_origins=settings.origins, allow_methods=["GET", "POST"], allow_headers=["Authorization"])

    async def __call__(self, scope, receive, send) -> None:
        await self.app(scope, receive, send)

    def gauges(self) -> dict[str, tuple[str, float]]:
        service = self.service
        return {"ready": ("1 where work is taken on.", service.ready),
                "units_in_use": ("Units of work admitted now.", self.guard.used),
                "units": ("Units of work that are admitted at once.", self.settings.limits.units),
                "bytes_held": ("Bytes of uploads in memory now.", self.guard.held),
                "decoded": ("Pictures decoded so far.", service.decoded),
                "computed": ("Answers and heatmaps computed so far.", service.computed),
                "decoders_died": ("Decoding processes that crashed or hung so far.", service.decoder.died)}


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with an end to its patience: it waits for ever for a head, and for a client that reads on."""

    _watch = _stuck = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        self._wait(HEAD_SECONDS)

    def connection_lost(self, exc) -> None:
        self._wait(None)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # a head is whole
            self._wait(None)
        elif self._watch is None and self.conn.their_state is h11.IDLE:  # the next one has begun
            self._wait(HEAD_SECONDS)

    def on_response_complete(self) -> None:
        unread = self.conn.their_state is h11.SEND_BODY  # nobody asked for it, and it need not end
        super().on_response_complete()
        if unread:
            self._wait(HEAD_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(STUCK_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck = self._stuck.cancel()

    def _wait(self, seconds: float | None) -> None:
        if self._watch is not None:
            self._watch = self._watch.cancel()
        if seconds is not None:
            self._watch = self.loop.call_later(seconds, self.transport.close)


class Server(uvicorn.Server):
    """uvicorn, which at SIGTERM first says that it is not ready, then answers what it has admitted; twice means now."""

    def __init__(self, app: Guarded):
        limits = app.settings.limits
        super().__init__(uvicorn.Config(
            app, http=Protocol, ws="none", lifespan="on", access_log=False, log_config=None, server_header=False,
            proxy_headers=False, timeout_keep_alive=KEEP_SECONDS,
            timeout_graceful_shutdown=round(limits.upload_seconds + limits.answer_seconds)))
        self.app, self._end = app, None

    def handle_exit(self, sig: int, frame) -> None:
        if self.app.service.draining:
            os._exit(128 + sig)
        self.app.service.draining, self._end = True, time.monotonic() + self.app.settings.drain

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self._end is not None and time.monotonic() >= self._end)
