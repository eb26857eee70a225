"""How many connections are served at once, and which of them gives way when all places are taken."""

from __future__ import annotations

import contextlib
import socket
import threading


class Slots:
    """Places for so many connections. One that has not yet made a request that is allowed gives way to a new one, the oldest first.

    So whoever only connects and is silent, without a token, cannot keep out those who have it.
    """

    def __init__(self, count: int) -> None:
        self._count, self._lock = count, threading.Lock()
        self._open: dict[socket.socket, bool] = {}  # in the order in which they came: whether the connection's request is allowed

    def take(self, connection: socket.socket) -> bool:
        """Whether there is a place for the connection; another one may be ended for it."""
        with self._lock:
            if len(self._open) >= self._count:
                oldest = next((one for one, allowed in self._open.items() if not allowed), None)
                if oldest is None:
                    return False
                del self._open[oldest]
                # The plain socket's: its thread, which may be in a TLS handshake, finds that nothing more comes, and closes it.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)
            self._open[connection] = False
            return True

    def allow(self, connection: socket.socket) -> None:
        """From now on the connection keeps its place until it ends."""
        with self._lock:
            if connection in self._open:
                self._open[connection] = True

    def give_back(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.pop(connection, None)
