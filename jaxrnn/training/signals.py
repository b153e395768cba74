"""Signals that ask a training to stop: Ctrl-C, and those that schedulers and terminals send before they kill."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
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
    stop = Stop()
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

    try:
        with contextlib.nullcontext() if grace is None else _end_after(grace):
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    previous[number] = signal.signal(number, ask) or signal.SIG_DFL
            yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _forget(descriptor: int) -> None:
    """Makes words to a terminal that has closed go nowhere, where they would be an error before all is saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextlib.contextmanager
def _end_after(grace: float) -> Iterator[None]:
    """Ends the process so long after a signal, unless the block has ended.

    A thread is told by the C level of Python's signals: the main thread may be in a compilation of a minute.
    """
    ended = threading.Event()
    told, teller = socket.socketpair()
    teller.setblocking(False)

    def wait() -> None:
        while (number := told.recv(1)) and number[0] not in STOPPING:
            pass
        if number and not ended.wait(grace):
            sys.stderr.write(f"jaxrnn: not saved within {grace:g} s of the signal; the checkpoint before it stands\n")
            sys.stderr.flush()
            os._exit(128 + number[0])

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(teller.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        teller.close()
        thread.join()
        told.close()
