"""A real HTTP server on loopback that serves a folder by ranges, counts, and misbehaves when told to."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["Site", "serve"]


@dataclass
class Site:
    """What is served, and how.

    ``statuses`` are answered in turn before any file; ``ranges`` false sends whole files, as the simplest servers do;
    ``short`` cuts that many bytes off every answer.
    """

    url: str = ""
    ranges: bool = True
    short: int = 0
    statuses: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Site]:
    """Serve a folder."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(f"{self.path} {self.headers.get('Range')}")
            path = folder / self.path.split("?")[0].lstrip("/")
            if site.statuses or not path.is_file():
                self.send_error(site.statuses.pop(0) if site.statuses else 404)
                return
            data = path.read_bytes()
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(match[1]), min(int(match[2]), len(data) - 1)) if match else (0, len(data) - 1)
            part = data[first : last + 1] if site.ranges else data
            self.send_response(206 if site.ranges else 200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
            self.send_header("Content-Length", str(len(part)))
            if site.ranges:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.end_headers()
            self.wfile.write(part[: len(part) - site.short])

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        site.url = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            listener.shutdown()
            thread.join()
