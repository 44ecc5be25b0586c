"""What a program that must end in order does about signals: the demo and the soak clean up, and say how it went."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_ECHO: Final = 0.5  # seconds in which a signal may come again: timeout(1) sends it to us and to our group


@contextmanager
def noted_signals() -> Iterator[Callable[[], int]]:
    """The first signal that asks us to end is only noted, so that everything ends in order; a later one forces it."""
    received = 0
    until = 0.0

    def note(number: int, _: FrameType | None) -> None:
        nonlocal received, until
        if received and time.monotonic() > until:
            raise KeyboardInterrupt
        received, until = received or number, until or time.monotonic() + _ECHO

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in former:
        signal.signal(number, note)
    try:
        yield lambda: received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
