"""Servers on 127.0.0.1 that fail in the ways a run may meet, and a proxy that works.

Each is a context manager with a `url`, for WANDB_BASE_URL, http_proxy or https_proxy; leaving it frees the port.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from fake_wandb import FakeWandb

_CONNECT_SECONDS = 0.2
_CHUNK = 65536


class _OnAPort:
    """A socket bound to a free port of 127.0.0.1, nothing more."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self):  # type: ignore[no-untyped-def]  # Self, which Python 3.10 does not have
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()


class Closed(_OnAPort):
    """Refuses connections. The port stays bound, so that nobody else can open it meanwhile."""


class BlackHole(_OnAPort):
    """Accepts connections, reads nothing and never answers."""

    def __init__(self) -> None:
        super().__init__()
        self._socket.listen(1000)  # the system accepts them


class FullBacklog(_OnAPort):
    """Does not even accept: its queue is full, and the system drops what else arrives, as a firewall does."""

    def __init__(self) -> None:
        super().__init__()
        self._socket.listen(0)
        self._waiting: list[socket.socket] = []
        while True:
            waiting = socket.socket()
            self._waiting.append(waiting)
            waiting.settimeout(_CONNECT_SECONDS)
            try:
                waiting.connect(self._socket.getsockname())
            except TimeoutError:
                return

    def close(self) -> None:
        for waiting in self._waiting:
            waiting.close()
        super().close()


class Refusing(ThreadingHTTPServer):
    """Answers every request with one status, such as 401 or 503."""

    daemon_threads = True

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _RefusingHandler)
        self.status = status
        self.requests = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()


class _RefusingHandler(BaseHTTPRequestHandler):
    server: Refusing

    def _refuse(self) -> None:
        self.server.requests += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _refuse

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class MortalWandb(FakeWandb):
    """A good server until `die` (connections are refused from then on) or `freeze` (nothing is answered any more).

    logins: the Authorization headers it was sent.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        """certificate: a PEM file with a key and a certificate, for a server that speaks TLS."""
        self.logins: set[str] = set()
        self._open: set[Any] = set()
        self._frozen = False
        self._dead = False
        super().__init__()
        self.RequestHandlerClass = _noting_logins(self.RequestHandlerClass, self.logins)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def die(self) -> None:
        if not self._dead:
            self._dead = True
            self.shutdown()
            self.socket.close()
            for connection in list(self._open):
                _hang_up(connection)

    def freeze(self) -> None:
        self._frozen = True

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        if not self._frozen:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        self.die()
        super().server_close()


def _noting_logins(handler: Any, logins: set[str]) -> Any:
    class Noting(handler):  # type: ignore[misc]
        def parse_request(self) -> bool:
            good: bool = super().parse_request()
            if good:
                logins.add(self.headers.get("Authorization", ""))
            return good

    return Noting


def make_certificate(folder: Path, host: str) -> Path:
    """A new key and a certificate for a host, signed by itself, in one PEM file; made with the openssl program."""
    key, certificate, both = folder / "key.pem", folder / "certificate.pem", folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={host}"]
    command += ["-addext", f"subjectAltName=DNS:{host}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both


class Proxy(_OnAPort):
    """Forwards plain requests and CONNECT tunnels. Knows hosts that no other resolver knows: {name: url}."""

    def __init__(self, hosts: dict[str, str]) -> None:
        super().__init__()
        self.seen: list[str] = []  # "POST atlas.test", one a connection
        self._hosts = hosts
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread up
        super().close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def _handle(self, client: socket.socket) -> None:
        with client:
            request = b""
            while b"\r\n\r\n" not in request:
                received = client.recv(_CHUNK)
                if not received:
                    return
                request += received
            line, rest = request.split(b"\r\n", 1)
            method, target, version = line.decode().split()
            url = urlsplit(f"//{target}" if method == "CONNECT" else target)
            self.seen.append(f"{method} {url.hostname}")
            if url.hostname not in self._hosts:
                client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                return
            place = urlsplit(self._hosts[url.hostname])
            with socket.create_connection((place.hostname, place.port)) as server:
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    path = url._replace(scheme="", netloc="").geturl() or "/"
                    # One request a connection, so that each is seen here.
                    server.sendall(f"{method} {path} {version}\r\nConnection: close\r\n".encode() + rest)
                _relay(client, server)


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes on in both directions until either side hangs up."""
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in selector.select():
                try:
                    data = key.fileobj.recv(_CHUNK)  # type: ignore[union-attr]
                    if not data:
                        return
                    key.data.sendall(data)
                except OSError:
                    return


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
