"""A real S3 server (SeaweedFS) on loopback, and a proxy in front of it that counts, and misbehaves when told to."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "features"
ACCESS, SECRET = "test", "testtesttest"


def binary() -> str | None:
    """The server's program, which pip puts beside Python."""
    return shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def environment(port: int) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[int]:
    """Run the server over an empty folder; gives its port once it answers and has the bucket."""
    identity = {"name": "test", "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}], "actions": ["Admin"]}
    # What the proxy changes no longer has a valid signature, so it signs nothing.
    anonymous = {"name": "anonymous", "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity, anonymous]}))
    for attempt in range(3):  # somebody else may take a port that was free
        server, port = _start(folder, log=folder / f"log-{attempt}")
        try:
            if _answers(port, server):
                yield port
                return
        finally:
            server.kill()
            server.wait()
    raise AssertionError(f"the S3 server did not start: {(folder / 'log-2').read_text()[-2000:]}")


def _start(folder: Path, *, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    ports = _free_ports(8)
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    options = {name: str(port) for name, port in zip([*names, "s3.port", "s3.port.grpc"], ports, strict=True)}
    options |= {"dir": str(folder), "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "s3.config": str(folder / "s3.json")}
    options |= {"s3.port.iceberg": "0", "s3.port.lance": "0", "volume.max": "20", "master.volumeSizeLimitMB": "64"}
    program = binary()
    assert program is not None
    command = [program, "server", "-filer", "-s3", "-master.telemetry=false"]
    command += [f"-{name}={value}" for name, value in options.items()]
    with open(log, "wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT), ports[6]


def request(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """One plain request, for what a test does behind the store's back."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, f"/{BUCKET}/{path}", body=body)
        response = connection.getresponse()
        return response.status, response.read()


@dataclass
class Proxy:
    """Passes requests on.

    ``spoil`` may change a request's headers, or answer it with a status instead of passing it on; ``after`` replaces
    the status of what was passed on; ``send`` and ``receive`` change the content on its way.
    """

    port: int
    requests: Counter[str] = field(default_factory=Counter)
    received: int = 0
    spoil: Callable[[str, str, dict[str, str]], int | None] = lambda *_: None
    after: Callable[[str, str], int | None] = lambda *_: None
    send: Callable[[str, bytes], bytes] = lambda path, body: body
    receive: Callable[[str, bytes], bytes] = lambda path, body: body


@contextlib.contextmanager
def proxy(server: int) -> Iterator[Proxy]:
    """A proxy in front of a server's port."""
    state = Proxy(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("host", "authorization", "connection", "x-amz-content-sha256", "x-amz-date")
            }
            state.requests[self.command] += 1
            status = state.spoil(self.command, self.path, headers)
            if status is not None:
                self.answer(status, {}, b"")
                return
            connection = http.client.HTTPConnection("127.0.0.1", server, timeout=20)
            with contextlib.closing(connection):
                connection.request(self.command, self.path, body=state.send(self.path, body), headers=headers)
                response = connection.getresponse()
                data = state.receive(self.path, response.read())
            state.received += len(data)
            self.answer(state.after(self.command, self.path) or response.status, dict(response.getheaders()), data)

        def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        state.port = listener.server_address[1]
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            listener.shutdown()
            thread.join()


def _answers(port: int, server: subprocess.Popen[bytes]) -> bool:
    for _ in range(600):
        if server.poll() is not None:
            return False
        with contextlib.suppress(OSError):
            if request(port, "PUT", "")[0] in (200, 409) and request(port, "PUT", "probe", b"x")[0] == 200:
                return server.poll() is None
        time.sleep(0.05)
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
