"""One model for many callers: pictures are decoded by `Decoders`, and one thread computes one answer after another.

So /livez answers at once whatever is computed, and an answer depends on nothing but its picture.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from patholib.base import pages
from patholib.base.errors import PathoError
from patholib.data import decoding
from patholib.deploy.inference import Predictor
from patholib.deploy.server.guard import Limits
from patholib.deploy.server.sandbox import Decoder, Picture

JET = (
    ((0.35, 0.66, 0.89, 1), (0, 1, 1, 0.5)),
    ((0.125, 0.375, 0.64, 0.91), (0, 1, 1, 0)),
    ((0, 0.11, 0.34, 0.65), (0.5, 1, 1, 0)),
)  # matplotlib's: where red, green and blue turn, and their values there


HALF_LIFE = 30.0  # seconds after which half of the time that a caller has taken is forgotten
MUCH = 1.0  # seconds: who has taken more leaves one decoder to the others


@dataclass(frozen=True)
class Settings:
    """How one server is to behave."""

    token: str | None = None
    origins: tuple[str, ...] = ()  # of other sites whose pages may ask
    docs: bool = True  # whether the routes are described at /docs and /openapi.json
    max_pixels: int = decoding.MAX_PIXELS
    decode_seconds: float = 10.0
    decoders: int = 2
    local: bool = True  # the port is that of this machine alone, see `Guard`
    root_path: str = ""  # where a proxy has put the service
    drain: float = 1.0  # seconds of "not ready" before the port closes
    limits: Limits = field(default_factory=Limits)


class Decoders:
    """Decodes for the caller who has taken the least time lately: an address, so all behind a proxy are one."""

    def __init__(self, decoders: list[Decoder]):
        self.all, self._free = decoders, list(decoders)
        self._threads = ThreadPoolExecutor(len(decoders), thread_name_prefix="decode")
        self._waiting: list[tuple[str, asyncio.Future]] = []  # in the order in which they came
        self._taken: dict[str, tuple[float, float]] = {}  # by caller: seconds, and when that was noted

    async def __call__(self, content: bytes, caller: str) -> Picture:
        """The decoded picture, once it is the caller's turn. Errors: as `Decoder`."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[Decoder] = loop.create_future()
        self._waiting.append((caller, turn))
        self._share_out()
        decoder, began = await turn, time.monotonic()
        work = loop.run_in_executor(self._threads, decoder, content)
        work.add_done_callback(lambda done: self._give_back(decoder, caller, time.monotonic() - began, done))
        return await asyncio.shield(work)  # whose caller has gone is decoded to its end, and paid for

    def close(self) -> None:
        """Ends threads and processes."""
        self._threads.shutdown(cancel_futures=True)
        for decoder in self.all:
            decoder.close()

    def taken(self, caller: str) -> float:
        """The seconds that a caller has taken lately."""
        seconds, noted = self._taken.get(caller, (0.0, 0.0))
        return seconds * 0.5 ** ((time.monotonic() - noted) / HALF_LIFE)

    def _share_out(self) -> None:
        self._waiting = [(caller, turn) for caller, turn in self._waiting if not turn.done()]  # the others have gone
        for caller, turn in sorted(self._waiting, key=lambda waiting: self.taken(waiting[0])):
            spare = 1 if len(self.all) > 1 and self.taken(caller) > MUCH else 0
            if len(self._free) <= spare:
                return  # all that follow have taken more
            turn.set_result(self._free.pop())

    def _give_back(self, decoder: Decoder, caller: str, seconds: float, done: asyncio.Future) -> None:
        if not done.cancelled():
            done.exception()  # seen, also where nobody waits for it any more
        self._taken[caller] = self.taken(caller) + seconds, time.monotonic()
        self._taken = {name: kept for name, kept in self._taken.items() if self.taken(name) > 0.01}
        self._free.append(decoder)
        self._share_out()


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
        """Starts decoder and threads and computes a first answer; at the end finishes what was admitted."""
        recipe = self.predictor.recipe
        settings = (recipe.cache_size, recipe.fit, self.settings.max_pixels, self.settings.decode_seconds)
        self.decoders = Decoders([Decoder(*settings) for _ in range(self.settings.decoders)])
        self.brain = ThreadPoolExecutor(1, thread_name_prefix="compute")
        try:
            await self._warm_up()
            yield
        finally:
            self.brain.shutdown(cancel_futures=True)
            self.decoders.close()

    async def _warm_up(self) -> None:
        content = io.BytesIO()
        Image.fromarray(noise(self.predictor)).save(content, "png")
        await self.answer(content.getvalue(), tta=False, explain=True)
        self.reason = ""

    @property
    def ready(self) -> bool:
        return not self.draining and not self.reason

    async def answer(self, content: bytes, tta: bool, explain: bool, caller: str = "") -> dict:
        """The answer to one uploaded picture, as JSON values."""
        picture = await self._decode(content, caller)
        return await self._compute(self._answer, picture, tta, explain)

    async def heatmap(self, content: bytes, caller: str = "") -> tuple[bytes, str, bool]:
        """A picture under its heat as PNG, the class that it argues for, and whether nothing argues for it."""
        picture = await self._decode(content, caller)
        return await self._compute(self._heatmap, picture, None)

    async def _decode(self, content: bytes, caller: str) -> Picture:
        picture = await self.decoders(content, caller)
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
        reply = {
            "decision": said.decision,
            "probabilities": said.probs,
            "prediction_set": said.prediction_set,
            "none_of_these": said.none_of_these,
            "promises": said.promises,
            "threshold": said.threshold,
            "alert": said.alert,
            "warnings": list(said.warnings),
            "tta": said.tta,
            "spread": said.spread,
            "model": self.model,
            "demo": manifest["demo"],
            "notice": manifest["notice"],
        }
        if explain:
            png, of, blank = self._heatmap(picture, said.decision)
            verdict = self.predictor.heat_verdict(of)
            reply["heatmap"] = {"png": pages.data_url(png, "png"), "of": of, "blank": blank, "verdict": verdict}
        return reply

    def _heatmap(self, picture: Picture, of: str | None) -> tuple[bytes, str, bool]:
        of = of or self.predictor.answer(picture.pixels).decision
        seen, heat = self.predictor.heatmap(picture.pixels, of)
        stream = io.BytesIO()
        Image.fromarray(overlay(seen, heat)).save(stream, "png")
        return stream.getvalue(), of, not heat.any()


def noise(predictor: Predictor) -> np.ndarray:
    """A picture (S, S, 3) uint8 to warm up with."""
    size = predictor.recipe.cache_size
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


def overlay(picture: np.ndarray, heat: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """A picture (H, W, 3) uint8 under the colours of its heatmap (H, W) in [0, 1]; unchanged where that is empty.

    As `heatmaps.overlay`, without matplotlib, which wants a folder it may write to.
    """
    if not heat.any():
        return picture
    colours = np.stack([np.interp(heat, places, values) for places, values in JET], axis=-1) * 255  # (H, W, 3)
    return np.rint((1 - opacity) * picture + opacity * colours).astype(np.uint8)
