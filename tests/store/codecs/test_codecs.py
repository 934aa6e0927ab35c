from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codecs_made import CHOICES, EXACT, describe, levels_of, made, some_maps
from hypothesis import given, settings
from numpy.typing import NDArray

from store.backends.zarr3 import decode_row, encode_row
from store.codecs.base import LevelSpec
from store.codecs.registry import CODECS, choice_json, choose_codec, codec_from_json, is_fitted, make_codec, make_fitter
from store.errors import FormatError, StoreError

GOLDEN = Path(__file__).parents[1] / "golden"
CODEC = pytest.mark.parametrize("choice", CHOICES, ids=describe)
PLAIN = [name for name in CODECS if not is_fitted(name)]
Maps = list[NDArray[np.float32]]


@CODEC
@given(feats=some_maps())
@settings(max_examples=40, deadline=None)
def test_numpy_and_torch_agree(choice: Mapping[str, Any], feats: Maps):
    codec = made(choice, feats)
    encoded = codec.encode_levels(feats)
    in_torch = codec.encode_levels([torch.from_numpy(feat.copy()) for feat in feats])
    for level, parts in enumerate(encoded):
        assert list(parts) == list(in_torch[level])
        for part, values in parts.items():
            if choice["name"] in EXACT:  # a matrix product may round otherwise in another library
                np.testing.assert_array_equal(values.view(np.uint8), in_torch[level][part].numpy().view(np.uint8))
    levels = range(len(feats))
    decoded = codec.decode_levels(dict(enumerate(encoded)), levels=levels)
    same = {
        level: {name: torch.from_numpy(part) for name, part in parts.items()} for level, parts in enumerate(encoded)
    }
    for plain, tensor in zip(decoded, codec.decode_levels(same, levels=levels), strict=True):
        assert plain.dtype == np.float32
        np.testing.assert_allclose(plain, tensor.numpy(), rtol=1e-5, atol=1e-5 * float(np.abs(plain).max()))


@CODEC
@given(feats=some_maps())
@settings(max_examples=40, deadline=None)
def test_parts_describe_what_encode_returns(choice: Mapping[str, Any], feats: Maps):
    codec, rows = made(choice, feats), len(feats[0])
    for index, (level, parts) in enumerate(zip(levels_of(feats), codec.encode_levels(feats), strict=True)):
        described = codec.parts(level, index=index)
        assert next(iter(described)) == "values"
        assert {part: (values.shape, values.dtype.name) for part, values in parts.items()} == {
            part: ((rows, *spec.shape), spec.dtype) for part, spec in described.items()
        }
        for spec in described.values():
            assert all(0 < cut < spec.row_bytes for cut in spec.cuts)


@CODEC
@given(feats=some_maps())
@settings(max_examples=20, deadline=None)
def test_a_row_decodes_alike_whatever_batch_it_is_in(choice: Mapping[str, Any], feats: Maps):
    codec = made(choice, feats)
    encoded = codec.encode_levels(feats)
    whole = codec.decode_levels(dict(enumerate(encoded)), levels=range(len(feats)))
    last = {level: {name: part[-1:] for name, part in parts.items()} for level, parts in enumerate(encoded)}
    for every, one in zip(whole, codec.decode_levels(last, levels=range(len(feats))), strict=True):
        np.testing.assert_allclose(every[-1:], one, rtol=1e-5, atol=1e-5 * float(np.abs(every).max()))


@CODEC
@given(feats=some_maps())
@settings(max_examples=20, deadline=None)
def test_some_levels_decode_from_the_levels_they_need(choice: Mapping[str, Any], feats: Maps):
    codec = made(choice, feats)
    encoded = codec.encode_levels(feats)
    whole = codec.decode_levels(dict(enumerate(encoded)), levels=range(len(feats)))
    for wanted in ([0], [1], [1, 0]):
        parts = {level: encoded[level] for level in codec.needed_levels(wanted)}
        for level, some in zip(wanted, codec.decode_levels(parts, levels=wanted), strict=True):
            np.testing.assert_array_equal(some, whole[level])


@given(feats=some_maps())
@settings(max_examples=100, deadline=None)
def test_errors_are_within_what_each_codec_promises(feats: Maps):
    def error(name: str) -> NDArray[np.float32]:
        codec = make_codec(name)
        return np.abs(codec.decode(codec.encode(feats[0])) - feats[0])

    assert not error("fp32").any()
    assert (error("fp16") <= np.maximum(np.abs(feats[0]) * 2**-11, 2**-25)).all()
    assert (error("bf16") <= np.abs(feats[0]) * 2**-8 + 2**-134).all()
    largest_N1HW = np.abs(feats[0]).max(axis=1, keepdims=True)
    assert (error("int8") <= largest_N1HW * (0.5 / 127) * 1.0001 + 1e-37).all()
    # A rotation keeps a token's length, which bounds every component, and half a step of each bounds the error's.
    length_N1HW = np.sqrt((feats[0].astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    assert (error("int4") <= length_N1HW * (0.5 / 7) * np.sqrt(feats[0].shape[1]) * 1.01 + 1e-6).all()


@CODEC
@given(feats=some_maps())
@settings(max_examples=10, deadline=None)
def test_json_and_arrays_round_trip(choice: Mapping[str, Any], feats: Maps):
    codec = made(choice, feats)
    value = json.loads(json.dumps(codec.to_json()))
    again = codec_from_json(value, assets=codec.assets() or None)
    assert value == again.to_json() == choice_json(choice)
    parts = dict(enumerate(codec.encode_levels(feats)))
    for first, second in zip(
        codec.decode_levels(parts, levels=range(len(feats))),
        again.decode_levels(parts, levels=range(len(feats))),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)


@CODEC
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_features_are_refused_and_the_level_named(choice: Mapping[str, Any], bad: float):
    feats = [np.ones((1, 2, 1, 1), np.float32), np.ones((1, 2, 1, 1), np.float32)]
    codec = made(choice, feats)
    feats[1][0, 1] = bad
    with pytest.raises(StoreError, match="level 1"):
        codec.encode_levels(feats)


def test_fp16_refuses_overflow_unless_clipping_is_asked_for():
    feat_NCHW = np.full((1, 1, 1, 1), -65505, np.float32)
    with pytest.raises(StoreError, match=r"level 1: expected values of at most 65504.*got 65505"):
        make_codec("fp16").encode(feat_NCHW, level=1)
    clipping = make_codec("fp16", options={"clip": True})
    assert clipping.decode(clipping.encode(feat_NCHW)).item() == -65504


def test_bf16_rounds_to_even_and_keeps_the_range_of_float32():
    feat = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1e38, 3.4e38, -1e-38], np.float32).reshape(1, 6, 1, 1)
    decoded = make_codec("bf16").decode(make_codec("bf16").encode(feat))
    expected = torch.from_numpy(feat).to(torch.bfloat16).float().numpy()
    expected[0, 4] = np.float32(3.3895314e38)  # torch rounds to infinity what has no bfloat16
    np.testing.assert_array_equal(decoded, expected)


def test_int8_float16_scales_refuse_what_they_cannot_hold():
    feat_NCHW = np.full((1, 1, 1, 1), 9e6, np.float32)
    with pytest.raises(StoreError, match=r"use codec \{name: int8, scale: float32\}"):
        make_codec("int8", options={"scale": "float16"}).encode(feat_NCHW)
    assert make_codec("int8").decode(make_codec("int8").encode(feat_NCHW)).item() == pytest.approx(9e6)


def test_int4_refuses_what_it_cannot_hold():
    with pytest.raises(StoreError, match=r"level 0: expected an even number of components.*got 3"):
        make_codec("int4").encode(np.ones((1, 3, 1, 1), np.float32))
    with pytest.raises(StoreError, match=r"that group 4 divides.*got 6"):
        make_codec("int4", options={"group": 4}).encode(np.ones((1, 6, 1, 1), np.float32))
    with pytest.raises(StoreError, match="use codec bf16"):
        make_codec("int4").encode(np.full((1, 2, 1, 1), 1e6, np.float32))


@pytest.mark.parametrize("name", PLAIN)
def test_foreign_parts_are_refused(name: str):
    with pytest.raises(FormatError, match="expected parts"):
        make_codec(name).decode({"values": np.zeros((1, 1, 1, 1)), "basis": np.zeros(1)})


@CODEC
def test_absent_levels_are_refused(choice: Mapping[str, Any]):
    feats = [np.ones((1, 2, 1, 1), np.float32), np.ones((1, 2, 1, 1), np.float32)]
    codec = made(choice, feats)
    with pytest.raises(FormatError, match=r"expected the parts of levels.*got none of \[1\]"):
        codec.decode_levels({0: codec.encode_levels(feats)[0]}, levels=[0, 1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "int7"}, "expected one of fp32, fp16"),
        ({"name": "int8", "bits": 3}, r"unknown options \['bits'\]"),
        ({"name": "int8", "scale": "int32"}, "expected float32 or float16"),
        ({"name": "int4", "group": -1}, "group: expected 0"),
        ({"name": "int4", "rotate": 1}, "rotate: expected true or false"),
        ({"name": "fp16", "clip": 1}, "expected true or false"),
        ({"name": "klt"}, "expected its fitted arrays"),
        ({"scale": "float32"}, "expected an object with a name"),
    ],
)
def test_malformed_json_is_refused(value: dict[str, object], message: str):
    with pytest.raises(FormatError, match=message):
        codec_from_json(value)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "klt", "error": 0}, "error: expected a relative error"),
        ({"name": "klt", "error": "small"}, "error: expected a relative error"),
        ({"name": "klt", "rows": 0}, "rows: expected 1 to"),
        ({"name": "klt", "block": 41}, "block: expected 1 to 40"),
        ({"name": "klt", "chain": 1}, "chain: expected true or false"),
        ({"name": "klt", "bits": 1}, r"unknown options \['bits'\]"),
        ("klt8", "expected one of"),
        (3, "expected one of"),
    ],
)
def test_malformed_choices_are_refused(choice: Any, message: str):
    with pytest.raises(FormatError, match=message):
        choice_json(choice)


def test_a_choice_says_how_its_codec_is_made():
    assert choice_json("klt") == {"name": "klt", "error": 0.15, "rows": 256, "block": 8, "chain": True}
    with pytest.raises(FormatError, match="sak extract alone can make one"):
        choose_codec("klt")
    with pytest.raises(FormatError, match="expected one that is fitted"):
        make_fitter("int8", [LevelSpec(components=2, height=1, width=1)])


@pytest.mark.parametrize("name", CODECS)
def test_committed_bytes_decode_for_ever(name: str):
    with np.load(GOLDEN / f"codec_{name}.npz", allow_pickle=False) as golden:
        assets = {key.removeprefix("asset_"): golden[key] for key in golden.files if key.startswith("asset_")}
        codec = codec_from_json(json.loads(golden["codec"].tobytes()), assets=assets or None)
        parts: dict[int, dict[str, NDArray[Any]]] = {}
        # The oldest files hold one level, and no number in their names.
        alone = "decoded" in golden.files
        expected = [golden[key] for key in sorted(golden.files) if key.startswith("decoded")]
        for index, decoded in enumerate(expected):
            level = LevelSpec(components=decoded.shape[1], height=decoded.shape[2], width=decoded.shape[3])
            parts[index] = {}
            for part, spec in codec.parts(level, index=index).items():
                values = np.empty((len(decoded), *spec.shape), spec.dtype)
                for row, chunk in enumerate(
                    golden_rows(golden[f"shard_{part}" if alone else f"shard_{index}_{part}"].tobytes())
                ):
                    decode_row(chunk, values.reshape(len(decoded), -1)[row].view(np.uint8))
                parts[index][part] = values
        for found, wanted in zip(codec.decode_levels(parts, levels=range(len(expected))), expected, strict=True):
            # Fitted codecs multiply matrices, whose last bits depend on the machine.
            np.testing.assert_allclose(
                found, wanted, rtol=0 if name in EXACT else 1e-5, atol=0 if name in EXACT else 1e-5
            )


def golden_rows(shard: bytes) -> list[bytes]:
    """Inner chunks of a shard of three rows with an index of four, found without the reader under test."""
    entries = np.frombuffer(shard[-4 * 16 - 4 : -4], "<u8").reshape(4, 2)[:3]
    return [shard[int(offset) : int(offset + size)] for offset, size in entries]


def test_cuts_change_bytes_and_nothing_else():
    values = np.concatenate([np.zeros(4096, np.uint8), np.random.default_rng(0).integers(0, 16, 8192).astype(np.uint8)])
    out = np.empty_like(values)
    plain, cut = encode_row(values), encode_row(values, cuts=[4096, 6000])
    assert plain != cut
    for chunk in (plain, cut):
        decode_row(chunk, out)
        np.testing.assert_array_equal(out, values)
