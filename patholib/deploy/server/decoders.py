"""Several decoding processes, shared out so that a caller with costly pictures does not keep the others waiting."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from patholib.deploy.server.sandbox import Decoder, Picture

HALF_LIFE = 30.0  # seconds after which half of the time that a caller has taken is forgotten
MUCH = 1.0  # seconds: who has taken more leaves one decoder to the others


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
