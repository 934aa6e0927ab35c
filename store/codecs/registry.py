"""The table of codecs; a new one is its module, one line here and one golden file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.codecs.base import Codec
from store.codecs.floats import Fp16, Fp32
from store.codecs.int8 import Int8
from store.errors import FormatError

__all__ = ["CODECS", "choose_codec", "codec_from_json", "make_codec"]

CODECS: Mapping[str, Any] = {
    "fp32": Fp32,
    "fp16": Fp16,
    "int8": Int8,
}


def make_codec(
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    fitted: Mapping[str, NDArray[np.generic]] | None = None,
) -> Codec:
    """Build a codec by name, from its options and, for one that is fitted to data, its arrays.

    Raises:
        FormatError: The name or an option is unknown, an option's value is refused, or arrays are given to a codec
            that has none or withheld from one that has.
    """
    if name not in CODECS:
        raise FormatError(f"codec: expected one of {', '.join(CODECS)}, got {name!r}")
    build = CODECS[name]
    known = [field.name for field in fields(build) if field.name != "fitted"]
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise FormatError(f"codec {name}: unknown options {unknown}; it has {known}")
    if bool(fitted) != any(field.name == "fitted" for field in fields(build)):
        raise FormatError(f"codec {name}: expected its fitted arrays and no others, got {sorted(fitted or {})}")
    codec: Codec = build(**(options or {}), **({"fitted": fitted} if fitted else {}))
    return codec


def choose_codec(choice: str | Mapping[str, Any], /) -> Codec:
    """The codec of a name, or of a mapping of ``name`` and options: ``{"name": "fp16", "clip": True}``.

    Raises:
        FormatError: The name or an option is unknown, or an option's value is refused.
    """
    return make_codec(choice) if isinstance(choice, str) else codec_from_json(choice)


def codec_from_json(value: Mapping[str, Any], /, *, assets: Mapping[str, NDArray[np.generic]] | None = None) -> Codec:
    """Inverse of ``Codec.to_json``; ``assets`` are the arrays stored beside it.

    Raises:
        FormatError: The JSON is no codec's, or assets are given to a codec that has none.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise FormatError(f"codec: expected an object with a name, got {value!r}")
    options = {key: item for key, item in value.items() if key != "name"}
    return make_codec(value["name"], options=options, fitted=assets)
