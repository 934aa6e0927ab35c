"""Extraction where scheduler, workers and client have nothing in common but the disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.extraction_events import events_path, read_events
from tests.pipeline.cluster.namespaces import ENVIRONMENT
from tests.tiny_recipe import stored_bytes

pytestmark = pytest.mark.slow

_PROBE = "ip link add br0 type bridge && ip link add v0 type veth peer name v1 && nsenter -t $$ -n true"


@pytest.fixture(scope="module")
def unshared() -> list[str]:
    """What starts a command in a network namespace of its own."""
    if any(shutil.which(tool) is None for tool in ("unshare", "nsenter", "ip")):
        pytest.skip("needs unshare, nsenter and ip")
    if subprocess.run(["unshare", "-rn", "sh", "-c", _PROBE], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives an ordinary user no network namespaces, bridges or links")
    return ["unshare", "-rn"]


def test_a_worker_that_is_cut_off_costs_nothing_but_time(
    unshared: list[str], expected_small: dict[str, bytes], tmp_path: Path
) -> None:
    command = [*unshared, sys.executable, "-m", "tests.pipeline.cluster.namespaces", str(tmp_path)]
    outcome = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert int((tmp_path / "was-cut").read_text(encoding="utf-8")) < 2 * 11, "it had something left to do"
    assert stored_bytes(tmp_path / "store") == expected_small
    events = read_events(events_path(tmp_path))
    workers = {event.fields["worker"] for event in events if event.name == "part_finished"}
    assert {worker.split(":")[1] for worker in workers} == {"//10.9.0.2", "//10.9.0.3"}
    assert events[-1].name == "run_finished"
