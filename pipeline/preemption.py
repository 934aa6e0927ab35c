"""SIGTERM, as a batch system sends it before it takes a machine back, ends an extraction as Ctrl-C does.

Training ends between two steps instead: ``pipeline.stopping``.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Preempted

__all__ = ["ended_by_sigterm"]


@contextmanager
def ended_by_sigterm(what: str, /) -> Iterator[None]:
    """Have SIGTERM interrupt what is done inside; what tidies up after Ctrl-C then does so after this too.

    Raises:
        Preempted: It came.
    """
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if not came:  # a second one must not break off the tidying up
            came = True
            raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, note)
    except ValueError:  # signals belong to the main thread; elsewhere there is nothing to listen to
        yield
        return
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if not came:
            raise
        raise Preempted(f"{what}: stopped by SIGTERM; the same command goes on where it stopped") from error
    finally:
        signal.signal(signal.SIGTERM, before)
