from __future__ import annotations

import socket

import pytest
from huggingface_hub import constants

from sak.hub import impatient_hub


@pytest.fixture(autouse=True)
def _online_without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("sak.hub.getproxies", dict)


def fail(seen: list[bool]) -> None:
    seen.append(constants.HF_HUB_OFFLINE)
    raise RuntimeError("inside")


def test_host_that_does_not_answer_leaves_only_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{held.getsockname()[1]}")
        seen: list[bool] = []
        with pytest.raises(RuntimeError, match="inside"), impatient_hub():
            fail(seen)
    assert seen == [True]
    assert not constants.HF_HUB_OFFLINE


def test_host_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with impatient_hub():
            assert not constants.HF_HUB_OFFLINE


def test_behind_a_proxy_nobody_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sak.hub.getproxies", lambda: {"https": "http://proxy.invalid:1"})
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with impatient_hub():
        assert not constants.HF_HUB_OFFLINE


def test_offline_by_choice_stays_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with impatient_hub():
            assert constants.HF_HUB_OFFLINE
    assert constants.HF_HUB_OFFLINE
