"""Strict loading, safe and atomic files, digests."""

from __future__ import annotations

import hashlib
import os
import resource
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sak.errors import CheckpointError
from sak.weights import (
    compare_state,
    digest_state,
    load_metadata,
    load_strict,
    load_weights,
    rename_keys,
    save_weights,
    sha256_file,
    unwrap_state,
)


def some_state() -> dict[str, Tensor]:
    return {
        "b": torch.arange(6.0).view(2, 3),
        "a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "n": torch.tensor(3),
    }


def test_saved_weights_come_back_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "w.safetensors"
    save_weights(path, some_state(), metadata={"who": "me", "zahl": "1 Δ"})
    loaded = load_weights(path)
    assert loaded.keys() == some_state().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in some_state().items())
    assert load_metadata(path) == {"who": "me", "zahl": "1 Δ"}


def test_equal_weights_are_equal_bytes_whatever_the_order(tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_weights(first, some_state(), metadata={"a": "1", "b": "2"})
    save_weights(second, dict(reversed(some_state().items())), metadata={"b": "2", "a": "1"})
    assert first.read_bytes() == second.read_bytes()
    assert sha256_file(first) == hashlib.sha256(second.read_bytes()).hexdigest()


def test_tied_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    save_weights(tmp_path / "w.safetensors", {"x": base, "y": base, "z": base.T})
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["z"], base.T)


def test_a_failed_save_leaves_the_old_file_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"x": torch.ones(2)})
    before = path.read_bytes()

    def full_disk(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: cannot be written \(No space"):
        save_weights(path, {"x": torch.zeros(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_torch_files_are_read_in_weights_only_mode(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": {"module.x": torch.ones(2)}, "epoch": 3}, path)
    assert torch.equal(load_weights(path)["x"], torch.ones(2))


class Hostile:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_a_torch_file_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Hostile()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        load_weights(tmp_path / "w.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.npz"])
def test_files_that_are_no_weights_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(CheckpointError, match=name):
        load_weights(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load_weights(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="nowhere"):
        load_metadata(tmp_path / "nowhere.safetensors")


def test_only_safetensors_are_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        save_weights(tmp_path / "w.pth", some_state())


def test_strict_loading_renames_and_reports() -> None:
    module = nn.Linear(2, 3)
    state = {"old.weight": torch.ones(3, 2), "old.bias": torch.zeros(3), "head.weight": torch.ones(9)}
    report = load_strict(module, state, where="here", renames=[(r"(.+)", r"old.\1")], drop=("head.",))
    assert report.fits
    assert set(report.matched) == {"old.weight", "old.bias"}
    assert torch.equal(module.weight, torch.ones(3, 2))


def test_nothing_is_loaded_when_anything_is_wrong() -> None:
    module = nn.Linear(2, 3)
    before = digest_state(module.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_strict(module, {"weight": torch.ones(2, 2), "scale": torch.ones(1)}, where="some.pth")
    for part in ("some.pth", "1 missing: bias", "1 unexpected: scale", "weight (expected (3, 2), got (2, 2))"):
        assert part in str(caught.value)
    assert digest_state(module.state_dict()) == before


def test_long_lists_of_faults_are_cut() -> None:
    report = compare_state({}, {f"k{i}": torch.ones(1) for i in range(30)})
    assert report.summary().endswith("and 22 more")


def test_keep_spares_what_the_state_lacks() -> None:
    module = nn.Linear(2, 3)
    report = load_strict(module, {"weight": torch.ones(3, 2)}, where="here", keep=("bias",))
    assert report.missing == ()


def test_renaming_two_keys_to_one_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'c'.*'a'.*'b'"):
        rename_keys({"a": torch.ones(1), "b": torch.ones(1)}, [("[ab]", "c")])


def test_patterns_match_whole_keys_and_the_first_wins() -> None:
    state = {"ab": torch.ones(1), "a": torch.ones(1)}
    assert list(rename_keys(state, [("a", "x"), ("a.*", "y")])) == ["y", "x"]


@pytest.mark.parametrize("loaded", [{}, {"model": {}}, {"x": 3}])
def test_a_mapping_without_tensors_is_refused(loaded: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="expected names with tensors"):
        unwrap_state(loaded)


def test_digest_sees_names_types_shapes_and_values_but_no_order() -> None:
    state = some_state()
    digest = digest_state(state)
    assert digest == digest_state(OrderedDict(reversed(state.items())))
    changed = [
        {**state, "b": state["b"].view(3, 2)},
        {**state, "b": state["b"] + 1},
        {**state, "n": state["n"].to(torch.int32)},
        {"b2" if name == "b" else name: tensor for name, tensor in state.items()},
    ]
    assert len({digest, *(digest_state(other) for other in changed)}) == 5


def test_digest_of_a_strided_tensor_is_that_of_its_copy() -> None:
    strided = torch.arange(6.0).view(2, 3).T
    assert digest_state({"x": strided}) == digest_state({"x": strided.contiguous()})


def test_a_disk_that_takes_no_more_is_told_with_the_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(CheckpointError, match=r"w\.safetensors: cannot be written"):
            save_weights(tmp_path / "w.safetensors", {"x": torch.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
