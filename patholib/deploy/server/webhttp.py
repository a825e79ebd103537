"""The HTTP server that carries the web service: uvicorn with an end to its patience."""

from __future__ import annotations

import asyncio
import os
import time

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from patholib.deploy.server.webapp import Guarded

HEAD_SECONDS = 5.0  # for the head of a request, from its first byte or from the connection
KEEP_SECONDS = 5  # for the next request on a connection
STUCK_SECONDS = 20.0  # in which a client reads nothing of its answer
CONNECTIONS = 512


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with time limits: by itself it waits for ever for a head, and for a client to read on."""

    _watch: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

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

    def _unsupported_upgrade_warning(self) -> None:
        """Without uvicorn's advice to install packages; the request is answered as one without an upgrade."""
        self.logger.debug("An upgrade was not made")

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
            self._stuck.cancel()
            self._stuck = None

    def _wait(self, seconds: float | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if seconds is not None:
            self._watch = self.loop.call_later(seconds, self.transport.close)


class Server(uvicorn.Server):
    """uvicorn; at SIGTERM first not ready, then it answers what it has admitted; a second SIGTERM ends it at once."""

    def __init__(self, app: Guarded):
        limits = app.settings.limits
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_SECONDS,
                timeout_graceful_shutdown=round(limits.upload_seconds + limits.answer_seconds),
            )
        )
        self.app = app
        self._end: float | None = None  # when it stops, whatever is still to be answered

    def handle_exit(self, sig: int, frame) -> None:
        if self.app.service.draining:
            os._exit(128 + sig)
        self.app.service.draining, self._end = True, time.monotonic() + self.app.settings.drain

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self._end is not None and time.monotonic() >= self._end)
