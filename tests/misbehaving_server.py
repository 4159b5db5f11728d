"""A real server on loopback that answers as told, badly where told, and counts what it is asked."""

import gzip
import socket
import ssl
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Reply(NamedTuple):
    """One answer. `raw` replaces all of it; `drop` cuts the connection after so many bytes of the body."""

    status: int = 200
    body: bytes = b"<html><head><title>A page</title></head><body id=top>text</body></html>"
    headers: Mapping[str, str] = {"Content-Type": "text/html; charset=utf-8"}
    raw: bytes | None = None
    drop: int | None = None
    drip_s: float = 0.0  # pause before every byte
    delay_s: float = 0.0


def page(title: str = "A page", body: str = "text", status: int = 200, **headers: str) -> Reply:
    """An HTML page."""
    text = f"<html><head><title>{title}</title></head><body>{body}</body></html>"
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, text.encode(), {"Content-Type": "text/html; charset=utf-8", **names})


def redirect(where: str, status: int = 301) -> Reply:
    """A redirect with a body that nobody should read."""
    return Reply(status, b"moved", {"Location": where})


def zipped(reply: Reply) -> Reply:
    """The same answer in gzip."""
    return reply._replace(body=gzip.compress(reply.body), headers={**reply.headers, "Content-Encoding": "gzip"})


class Server(ThreadingHTTPServer):
    """Answers by "host/path" (or "HEAD host/path"); a list is answered in turn, its last reply for good."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: dict[str, Reply | list[Reply] | Callable[[str], Reply]] = {}
        self.asked: list[tuple[str, str]] = []  # method and host/path, in order
        self.headers: list[Mapping[str, str]] = []
        self.busy: Counter[str] = Counter()
        self.peak: dict[str, int] = defaultdict(int)
        self.total_peak = self.connections = 0
        self.lock = threading.Lock()

    def count(self, where: str = "") -> int:
        """How many requests went to addresses that start so."""
        return sum(path.startswith(where) for _, path in self.asked)

    def methods(self, where: str) -> list[str]:
        """The methods with which one address was asked."""
        return [method for method, path in self.asked if path == where]

    def reply(self, method: str, where: str) -> Reply:
        """The next answer for an address."""
        with self.lock:
            for key in (f"{method} {where}", where, f"{method} {where.partition('?')[0]}", where.partition("?")[0]):
                found = self.replies.get(key)
                if callable(found):
                    return found(where)
                if isinstance(found, list):
                    return found.pop(0) if len(found) > 1 else found[0]
                if found is not None:
                    return found
        return page("404 Not Found", status=404)

    def process_request(self, request: socket.socket, client_address: object) -> None:
        """Count connections."""
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    """Plays the reply. Connections are left open, as if the client had not asked to close them."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        server, host = self.server, self.headers.get("Host", "").partition(":")[0]
        where = host + self.path
        with server.lock:
            server.asked.append((self.command, where))
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.busy[host] += 1
            server.peak[host] = max(server.peak[host], server.busy[host])
            server.total_peak = max(server.total_peak, sum(server.busy.values()))
        reply = server.reply(self.command, where)
        time.sleep(reply.delay_s)
        # A client that has its answer may ask again before this thread goes on: it is counted out first.
        if not reply.drip_s:
            self.leave(host)
        try:
            self.play(reply)
        finally:
            if reply.drip_s:
                self.leave(host)

    def leave(self, host: str) -> None:
        with self.server.lock:
            self.server.busy[host] -= 1

    do_GET = do_HEAD = answer  # noqa: N815

    def play(self, reply: Reply) -> None:
        if reply.raw is not None:
            self.wfile.write(reply.raw)
            self.close_connection = True
            return
        self.close_connection = False
        self.send_response_only(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if reply.drip_s:
            for i in range(len(reply.body)):
                time.sleep(reply.drip_s)
                self.wfile.write(reply.body[i : i + 1])
                self.wfile.flush()
            return
        self.wfile.write(reply.body[: reply.drop])
        if reply.drop is not None:  # linger 0: the peer sees a reset, not an end
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Silence."""


@contextmanager
def running(certificate: str = "", key: str = "") -> Iterator[Server]:
    """A server while it runs; with a certificate it speaks TLS."""
    server = Server()
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
