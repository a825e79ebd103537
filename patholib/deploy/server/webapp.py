"""The web service around a model: the routes behind the guard, and what is counted for Prometheus.

Behind the `Guard`, an upload becomes an answer in three steps: the form is parsed in memory, the picture is decoded in
the `sandbox`, and one thread computes what `inference.Predictor` says. It starts with `serving`.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi.responses import PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import QueryParams
from starlette.middleware.cors import CORSMiddleware

from patholib.deploy.inference import Predictor
from patholib.deploy.server.guard import App, Guard, Message
from patholib.deploy.server.webroutes import routes
from patholib.deploy.server.webservice import Service, Settings

COSTS = {"/predict": 1, "/predict/batch": 8, "/explain": 4}  # units of work, see `Limits.units`
MORE = {"tta": 4, "explain": 3}  # units that a query adds
OPEN = ("/", "/livez", "/readyz", "/health")  # without a token: a probe has none, and the page asks for it
ROUTES = (*OPEN, *COSTS, "/model", "/metrics", "/openapi.json", "/docs")
BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # seconds, of the histogram


def cost(scope: Message) -> int:
    """The units of work of a request, 0 for what is answered at once."""
    if scope["method"] != "POST" or scope["path"] not in COSTS:
        return 0
    asked = QueryParams(scope["query_string"])  # as the routes read it
    return COSTS[scope["path"]] + sum(more for name, more in MORE.items() if name in asked)


class Guarded:
    """The whole service as an ASGI app: routes, guard, and other sites' pages where they are allowed to ask."""

    def __init__(self, predictor: Predictor, settings: Settings):
        self.service, self.settings = Service(predictor, settings), settings
        api = routes(self.service, settings)
        registry = CollectorRegistry()  # of this app alone
        self.guard = Guard(
            api,
            settings.limits,
            cost,
            ROUTES,
            settings.token,
            OPEN,
            counted(registry),
            settings.origins,
            settings.local,
        )
        self._add_gauges(registry)

        @api.get("/metrics", response_class=PlainTextResponse)
        async def metrics():
            """What was answered and how quickly, in the text format of Prometheus."""
            return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

        self.app: App = (
            self.guard
            if not settings.origins
            else CORSMiddleware(
                self.guard,
                allow_origins=settings.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization"],
            )
        )

    async def __call__(self, scope, receive, send) -> None:
        root, path = self.settings.root_path, scope.get("path", "")
        if root and path == root:  # the addresses in the page count from its folder
            send_on = RedirectResponse(f"{root}/", 308)
            await send_on(scope, receive, send)
            return
        if root and path.startswith(f"{root}/"):
            scope = {**scope, "path": path.removeprefix(root)}
        await self.app(scope, receive, send)

    def _add_gauges(self, registry: CollectorRegistry) -> None:
        service, guard = self.service, self.guard
        for name, what, value in (
            ("ready", "1 where work is taken on.", lambda: service.ready),
            ("units_in_use", "Units of work admitted now.", lambda: guard.used),
            ("units", "Units of work that are admitted at once.", lambda: self.settings.limits.units),
            ("bytes_held", "Bytes of uploads in memory now.", lambda: guard.held),
            ("decoded", "Pictures decoded so far.", lambda: service.decoded),
            ("computed", "Answers and heatmaps computed so far.", lambda: service.computed),
            (
                "decoders_died",
                "Decoding processes that crashed or hung so far.",
                lambda: sum(decoder.died for decoder in service.decoders.all),
            ),
        ):
            Gauge(f"patholib_{name}", what, registry=registry).set_function(value)


def counted(registry: CollectorRegistry) -> Callable[[str, int, float], None]:
    """What counts an answer: its route, status and seconds."""
    answered = Counter(
        "patholib_requests",
        "Answers by route and status (499: the client went away).",
        ["route", "status"],
        registry=registry,
    )
    lasted = Histogram(
        "patholib_request_seconds",
        "From the head of a request to the end of its answer.",
        ["route"],
        buckets=BOUNDS,
        registry=registry,
    )

    def count(route: str, status: int, seconds: float) -> None:
        answered.labels(route, status).inc()
        lasted.labels(route).observe(seconds)

    return count
