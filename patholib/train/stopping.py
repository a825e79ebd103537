"""Stops a training cleanly: on signals, and when its time is up."""

from __future__ import annotations

import signal
import threading
import time

from patholib.base.errors import PathoError
from patholib.model import schedules


class Stop:
    """Turns SIGTERM, SIGINT and the end of the allowed time into a request, so that the step in progress may finish.

    Several processes may get requests at different moments: all follow `agreed`, what they have told each other.
    """

    def __init__(self, max_hours: float | None):
        self.deadline = schedules.deadline(max_hours, time.monotonic())
        self.signal: int | None = None
        self.agreed: list[float] | None = None  # the sums of all processes' requests
        self.previous: dict = {}  # handlers by signal

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number, _frame) -> None:
        if self.signal is not None:  # asked twice: leave at once, the files are whole at any moment
            raise KeyboardInterrupt
        self.signal = number

    def requests(self) -> list[float]:
        """The requests to this process: SIGTERM, SIGINT, time is up; 1 or 0 each."""
        late = time.monotonic() >= self.deadline
        return [float(self.signal == signal.SIGTERM), float(self.signal == signal.SIGINT), float(late)]

    @property
    def requested(self) -> bool:
        """Whether to save and leave now."""
        return any(self.requests() if self.agreed is None else self.agreed)

    def error(self, name: str) -> BaseException:
        """What to raise where it is requested; name: of the run, for the message."""
        how = 'To continue, run the same cell or command again with resume="auto"'
        terminated, interrupted, _ = self.requests() if self.agreed is None else self.agreed
        if terminated:
            return SystemExit(143)
        if interrupted:
            return KeyboardInterrupt(f"training is saved in {name}. {how}")
        return PathoError("time_is_up", "max_hours", "the time allowed is over; training is saved", how)
