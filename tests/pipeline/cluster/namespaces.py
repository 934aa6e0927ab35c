"""An extraction over a scheduler and two workers, each in a network namespace of its own, one of which is cut off.

Run as ``unshare -rn python -m tests.pipeline.cluster.namespaces FOLDER``: this process, the client, is in a fourth
namespace, where a bridge joins them all. They share the disk alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.cluster import flight
from pipeline.extraction_events import events_path
from pipeline.extraction_log import ExtractionLog
from pipeline.stages.extract import extract
from tests.pipeline.cluster.conftest import SMALL, over, records, study_of

REPOSITORY = Path(__file__).resolve().parents[3]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
BRIDGE = "10.9.0.254"


class Host:
    """A network namespace with one address, joined to the bridge."""

    def __init__(self, number: int, /, *, stack: ExitStack) -> None:
        self.address = f"10.9.0.{number}"
        self._stack = stack
        self._holder = self._started(["unshare", "-n", "sleep", "infinity"])
        inside, outside = Path(f"/proc/{self._holder.pid}/ns/net"), Path("/proc/self/ns/net")
        while inside.readlink() == outside.readlink():
            time.sleep(0.01)
        ip("link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", str(self._holder.pid))
        ip("link", "set", f"v{number}", "master", "br0", "up")
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self.ip("link", "set", device, "up")

    def ip(self, *arguments: str) -> None:
        """Run ``ip`` in it."""
        subprocess.run([*self._enter(), "ip", *arguments], check=True)

    def dask(self, kind: str, *arguments: str) -> None:
        """Start a scheduler or worker in it, as users start them."""
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard", *arguments]
        self._started([*self._enter(), *command])

    def _enter(self) -> list[str]:
        return ["nsenter", "-t", str(self._holder.pid), "-n"]

    def _started(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process


def ip(*arguments: str) -> None:
    """Run ``ip`` in this namespace."""
    subprocess.run(["ip", *arguments], check=True)


def main(root: Path) -> None:
    """Extract to ``root/store``; the first worker's link goes down for ever once some parts are done."""
    ip("link", "set", "lo", "up")
    ip("link", "add", "br0", "type", "bridge")
    ip("addr", "add", f"{BRIDGE}/24", "dev", "br0")
    ip("link", "set", "br0", "up")
    flight._STRAGGLE_SECONDS, flight._RESULT_SECONDS = 1.0, 2.0
    with ExitStack() as stack:
        scheduler, cut, other = (Host(number, stack=stack) for number in (1, 2, 3))
        address = f"tcp://{scheduler.address}:8786"
        scheduler.dask("scheduler", "--host", scheduler.address, "--port", "8786")
        for host in (cut, other):
            host.dask("worker", address, "--host", host.address, "--nthreads", "1", "--no-nanny")
        await_workers(address)
        threading.Thread(target=cut_off, args=(cut, root), daemon=True).start()
        extract([study_of(root, [*SMALL, *over(address)])], log=ExtractionLog(events_path(root)))
        # Not before the end: the link stays down while anything is left to do.
        (root / "cut").rename(root / "was-cut")


def await_workers(address: str) -> None:
    """Wait until both are there: the run is to begin with two."""
    from distributed import Client

    with Client(address, set_as_default=False, timeout=60) as client:
        client.wait_for_workers(2, timeout=60)


def cut_off(host: Host, root: Path) -> None:
    """Take a host's link down in mid-run."""
    while records(root) < 3:
        time.sleep(0.002)
    host.ip("link", "set", "eth0", "down")
    (root / "cut").write_text(str(records(root)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
