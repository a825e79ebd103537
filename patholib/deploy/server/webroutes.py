"""The routes of the web service: what is asked, what is answered, and how a refusal looks."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from patholib import __version__
from patholib.base import pages
from patholib.base.errors import PathoError
from patholib.deploy.server.guard import Refusal, unforeseen
from patholib.deploy.server.webservice import Service, Settings

FIELD = "file"  # of the form
BATCH = 16  # pictures in one request
PAGE = Path(__file__).with_name("page.html")


PARSER_SAYS = {  # what the beginning of its messages means
    "Too many files": "has more than {most} files",
    "Too many fields": f"has a field that is text and no file (curl -F {FIELD}=@picture.png: mind the @)",
}


class Problem(BaseModel):
    """Why there is no result; the code is stable, for programs."""

    code: str
    reason: str
    remedy: str


def form(several: bool = False) -> dict:
    """The OpenAPI of a form with one picture, or several."""
    one = {"type": "string", "format": "binary", "description": "PNG, JPEG, BMP, TIFF or WebP"}
    schema = {"type": "array", "items": one, "minItems": 1, "maxItems": BATCH} if several else one
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": [FIELD],
                        "properties": {FIELD: schema},
                        "additionalProperties": False,
                    }
                }
            },
        }
    }


def routes(service: Service, settings: Settings) -> FastAPI:
    """The app without its guard."""
    api = FastAPI(
        title="PathoVision",
        version=__version__,
        lifespan=service.lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
        redirect_slashes=False,
        description=service.predictor.manifest["notice"],
        responses={"default": {"model": Problem, "description": "Why there is no result"}},
    )
    _add_pictures(api, service, settings.limits.body)
    _add_batch(api, service, settings.limits.body)
    _add_state(api, service, settings)
    _add_pages(api, settings.docs)
    _add_refusals(api)
    return api


def _add_pictures(api: FastAPI, service: Service, body: int) -> None:
    @api.post("/predict", openapi_extra=form())
    async def predict(request: Request, tta: bool = False, explain: bool = False):
        """What the model says of one picture; tta: averaged over fixed views; explain: with a heatmap."""
        _stop_on_unknown(request, "tta", "explain")
        (content,) = await uploads(request, 1, body)
        return JSONResponse(await service.answer(content, tta, explain, _caller(request)))

    @api.post(
        "/explain", openapi_extra=form(), response_class=Response, responses={200: {"content": {"image/png": {}}}}
    )
    async def explain(request: Request):
        """The picture under its heat (Grad-CAM); X-Class names the class, X-Verdict says what the checks have shown."""
        _stop_on_unknown(request)
        (content,) = await uploads(request, 1, body)
        png, of, blank = await service.heatmap(content, _caller(request))
        verdict = quote(service.predictor.heat_verdict(of), safe=" ")
        headers = {"X-Class": quote(of, safe=""), "X-Blank": str(blank).lower(), "X-Verdict": verdict}
        return Response(png, media_type="image/png", headers=headers)


def _add_batch(api: FastAPI, service: Service, body: int) -> None:
    @api.post("/predict/batch", openapi_extra=form(several=True))
    async def batch(request: Request, tta: bool = False):
        """What the model says of each picture, or why that one cannot be used."""
        _stop_on_unknown(request, "tta")
        found = []
        for content in await uploads(request, BATCH, body):
            try:
                found.append(await service.answer(content, tta, False, _caller(request)))
            except PathoError as error:
                if status(error) != 422:
                    raise
                found.append(problem(error))
        return JSONResponse({"answers": found})


def _add_state(api: FastAPI, service: Service, settings: Settings) -> None:
    @api.get("/health")
    async def health():
        """Is the model loaded, and on what does it compute?"""
        return JSONResponse(
            {"status": "healthy" if service.ready else "not ready", "model_loaded": True, "device": "cpu"}
        )

    @api.get("/livez", response_class=PlainTextResponse)
    async def livez():
        """The server answers."""
        return PlainTextResponse("ok")

    @api.get(
        "/readyz",
        response_class=PlainTextResponse,
        responses={503: {"description": "Starting, stopping, or its model is broken", "content": {"text/plain": {}}}},
    )
    async def readyz():
        """The server takes on work."""
        reason = "is stopping" if service.draining else service.reason
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    @api.get("/model")
    async def model():
        """The model card: what the model is, and what this server takes."""
        limits = {"mib": settings.limits.body / 2**20, "megapixels": settings.max_pixels / 1e6, "batch": BATCH}
        return JSONResponse(service.predictor.manifest | {"engine": service.predictor.engine, "limits": limits})


def _add_pages(api: FastAPI, docs: bool) -> None:
    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page():
        return HTMLResponse(PAGE.read_bytes(), headers={"Content-Security-Policy": policy(PAGE.read_text("utf-8"))})

    if docs:  # Swagger's own page comes from another site

        @api.get("/docs", response_class=HTMLResponse, include_in_schema=False)
        async def routes_page():
            content = pages.render("routes.html", title="PathoVision: the service", schema=api.openapi())
            security = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
            return HTMLResponse(content, headers={"Content-Security-Policy": security})


def _add_refusals(api: FastAPI) -> None:
    @api.exception_handler(Refusal)
    async def turned_away(_request, error: Refusal):
        return JSONResponse(error.body, error.status, headers=error.headers)

    @api.exception_handler(Exception)
    async def failed(_request, _error: Exception):  # raised again behind this answer: the guard writes it down
        return JSONResponse(unforeseen().body, 500)

    @api.exception_handler(PathoError)
    async def refused(_request, error: PathoError):
        return JSONResponse(problem(error), status(error))

    @api.exception_handler(RequestValidationError)
    async def invalid(_request, error: RequestValidationError):
        names = {str(part) for found in error.errors() for part in found["loc"]} & {"tta", "explain"}
        return JSONResponse(
            problem(_bad_query(f"has a value of {' and '.join(sorted(names))} that is no yes or no")), 422
        )

    @api.exception_handler(HTTPException)
    async def nothing_there(_request, error: HTTPException):
        content = {
            "code": "not_found" if error.status_code == 404 else "bad_request",
            "reason": f"is answered with {error.status_code} {error.detail}"[:80],
            "remedy": "See /docs",
        }
        return JSONResponse(content, error.status_code, headers=error.headers)


def _caller(request: Request) -> str:
    return request.client.host if request.client else ""


def problem(error: PathoError) -> dict:
    return {"code": error.code, "reason": error.reason, "remedy": error.remedy}


def status(error: PathoError) -> int:
    """The HTTP status of an error: 422, or 500 where the model failed."""
    return 500 if error.code == "model_output" else 422


async def uploads(request: Request, most: int, body: int) -> list[bytes]:
    """The pictures of a form, parsed in memory: no upload is ever on disk. Names and types are not looked at.

    Errors: 415 packed, no_form; 422 bad_form, bad_fields.
    """
    _stop_on_head(request.headers.get("content-type", ""), request.headers.get("content-encoding", "identity"))
    parser = _Parser(request.headers, request.stream(), max_files=most, max_fields=0, max_part_size=1024)
    parser.spool_max_size = body + 1
    try:
        return await _pictures(parser, most)
    finally:
        for file in parser._files_to_close_on_error:  # its name says less: they are all files of the form
            file.close()


class _Parser(MultiPartParser):
    """starlette's, which passes over a part that is cut off."""

    whole = False

    def on_end(self) -> None:
        self.whole = True


async def _pictures(parser: _Parser, most: int) -> list[bytes]:
    """The content of each file. Errors: 422 bad_form, bad_fields."""
    try:
        parts = (await parser.parse()).multi_items()
    except Exception as error:  # the parser lets anything through on a hostile character set
        reason = "has a form that cannot be read"
        for said, known in PARSER_SAYS.items():
            if isinstance(error, MultiPartException) and error.message.startswith(said):
                reason = known.format(most=most)
        raise Refusal(422, "bad_form", reason, _form(most)) from error
    if not parser.whole:
        raise Refusal(422, "bad_form", "has a form that is cut off", _form(most))
    if any(name != FIELD for name, _ in parts):
        raise Refusal(422, "bad_fields", f"has a field that is not called {FIELD}", _form(most))
    found = [await value.read() for _, value in parts if isinstance(value, UploadFile)]
    if not found:
        raise Refusal(422, "bad_fields", "has no picture", _form(most))
    return found


def _stop_on_head(kind: str, encoding: str) -> None:
    """Errors: 415 packed, no_form; 422 bad_form."""
    curl = f"Send it so: curl -F {FIELD}=@picture.png"
    if encoding.lower() != "identity":
        raise Refusal(
            415, "packed", "is compressed (Content-Encoding)", "Send it as it is: pictures are compressed already"
        )
    if not re.match(r"multipart/form-data\s*(;|$)", kind, re.IGNORECASE):
        raise Refusal(415, "no_form", "is no multipart form", curl)
    if not re.search(r";\s*boundary=", kind, re.IGNORECASE):
        raise Refusal(422, "bad_form", "has a Content-Type without a boundary", f"Let your library set it. {curl}")


def _form(most: int) -> str:
    return f"Send one file in the field {FIELD}" if most == 1 else f"Send 1 to {most} files, each in a field {FIELD}"


def _stop_on_unknown(request: Request, *known: str) -> None:
    if set(request.query_params) - set(known):  # not named: it may hold anything
        raise _bad_query(f"has parameters besides {' and '.join(known) or 'none'}")


def _bad_query(reason: str) -> PathoError:
    return PathoError("bad_parameter", "query", reason, "See /docs")


def policy(page: str) -> str:
    """The content security policy of a page: only its own script and style, by their digests."""

    def digests(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(f.encode()).digest()).decode()}'" for f in found)

    return (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
