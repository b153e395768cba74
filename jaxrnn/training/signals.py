"""Signals that ask a training to stop: Ctrl-C, and those that schedulers and terminals send before they kill."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Ctrl-C; what Slurm, Kubernetes and `kill` send; a terminal that closes. Not every system has them all.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stop:
    """Says, when called, whether a signal has asked to stop.

    Fields:
        signal: the number of the first that came; None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Returns whether a signal has come."""
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signals(grace: float | None = None) -> Iterator[Stop]:
    """Turns signals into the `stop` of `fit`: in the middle of a step they would leave donated buffers and no result.

    After one of them Ctrl-C ends at once. What is ignored stays so, as `nohup` asks for. In another thread than the
    main one, signals are left alone.

    Args:
        grace: seconds from the first signal to the end of the process, if the block has not ended by then; None waits.

    >>> import signal
    >>> from jaxrnn.training.signals import stop_on_signals
    >>> with stop_on_signals() as stop:
    ...     before = stop()
    ...     signal.raise_signal(signal.SIGTERM)
    >>> before, stop(), 128 + stop.signal  # as a shell counts it
    (False, True, 143)
    """
    stop, ended = Stop(), threading.Event()
    previous: dict[int, Any] = {}
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.signal is None:
            stop.signal = number
        for descriptor in terminals:
            if not os.isatty(descriptor):
                _forget(descriptor)
        signal.signal(signal.SIGINT, previous.get(signal.SIGINT, signal.SIG_IGN))

    def end(number: int) -> None:
        if not ended.wait(grace):
            _leave(number, f"not saved within {grace:g} s of the signal; the checkpoint before it stands")

    try:
        with _told(None if grace is None else end):
            _handle(ask, previous)
            try:
                yield stop
            finally:
                ended.set()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def end_on_signals() -> Iterator[None]:
    """Ends the process at a signal, at once, with a line and the code that a shell counts it as: 128 and its number.

    It is for a command: what it does besides training, such as to compile and to draw, leaves nothing half done.
    Within, `stop_on_signals` takes the signals over; after it, they end the process without a word. What is ignored
    stays so; in another thread than the main one, signals are left alone.
    """
    previous: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any = None) -> None:
        _leave(number, f"ended by {signal.Signals(number).name}; what was saved stands")

    try:
        with _told(end):
            _handle(end, previous)
            yield
    finally:
        for number in previous:
            signal.signal(number, signal.SIG_DFL)  # Python's own handler of Ctrl-C would print a traceback


def take_back() -> None:
    """Sets the handlers of Python again, beneath which a library has set its own."""
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


def _handle(handler: Callable[[int, Any], None], previous: dict[int, Any]) -> None:
    """Handles the signals that are not ignored, and adds what handled them before."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, handler) or signal.SIG_DFL


_leaving = threading.Lock()


def _leave(number: int, words: str) -> None:
    """Ends the process of a signal, with a line; says it once where several threads come here."""
    if _leaving.acquire(blocking=False):
        with contextlib.suppress(OSError):  # a terminal that has closed
            os.write(2, f"jaxrnn: {words}\n".encode())
        os._exit(128 + number)


def _forget(descriptor: int) -> None:
    """Makes words to a terminal that has closed go nowhere, where they would be an error before all is saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextlib.contextmanager
def _told(act: Callable[[int], None] | None) -> Iterator[None]:
    """Calls a function with the number of a signal, in a thread, instead of what a block around this calls, if any.

    A thread is told by the C level of Python's signals: the main thread may be in a compilation of a minute.
    """
    told, teller = socket.socketpair()
    teller.setblocking(False)

    def wait() -> None:
        while number := told.recv(1):
            if act is not None and number[0] in STOPPING:
                act(number[0])

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(teller.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        teller.close()
        thread.join()
        told.close()
