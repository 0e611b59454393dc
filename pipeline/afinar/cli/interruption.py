"""Interruption of a job by SIGINT (Ctrl-C), SIGTERM or SIGHUP: one sentence and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# After this time the process exits even if it waits for something, such as a network. Kubernetes
# kills a pod 30 s after SIGTERM.
_ENDING_S: Final = 25.0

_received: list[signal.Signals] = []


def handle_signals() -> None:
    """Let the first of the three signals raise KeyboardInterrupt in the main thread.

    To be called once, by the entry point of a process. Further signals are ignored, so that the
    job ends in order: it disconnects from Ray and prints its sentence. A signal that the process
    ignores from the beginning (nohup, a job in the background) stays ignored.
    """
    handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        _received.append(signal.Signals(number))
        watchdog = threading.Timer(_ENDING_S, _exit_now)
        watchdog.daemon = True
        watchdog.start()
        raise KeyboardInterrupt

    for number in handled:
        signal.signal(number, interrupt)


def _exit_now() -> None:
    sys.stderr.write(f"afinar: {cause()}; not everything ended in {_ENDING_S:.0f} s\n")
    sys.stderr.flush()
    os._exit(exit_code())


def exit_code() -> int:
    """Return 130, 143 or 129: 128 and the number of the signal, as shells report it."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def cause() -> str:
    """Return what interrupted the job, as the beginning of a sentence."""
    if not _received or _received[0] == signal.SIGINT:
        return "interrupted"
    return f"interrupted by {_received[0].name}"


def release(error: BaseException) -> None:
    """Close what the frames of an error's traceback still hold, such as a connection to Ray.

    Their generators would otherwise be closed when the interpreter exits, after the last message.
    """
    traceback.clear_frames(error.__traceback__)
