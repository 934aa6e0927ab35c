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

__all__ = ["CODECS", "codec_from_json", "make_codec"]

CODECS: Mapping[str, type[Fp32] | type[Fp16] | type[Int8]] = {
    "fp32": Fp32,
    "fp16": Fp16,
    "int8": Int8,
}


def make_codec(name: str, *, options: Mapping[str, Any] | None = None) -> Codec:
    """Build a codec by name.

    Raises:
        FormatError: The name or an option is unknown, or an option's value is refused.
    """
    if name not in CODECS:
        raise FormatError(f"codec: expected one of {', '.join(CODECS)}, got {name!r}")
    build = CODECS[name]
    known = [field.name for field in fields(build)]
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise FormatError(f"codec {name}: unknown options {unknown}; it has {known}")
    return build(**(options or {}))


def codec_from_json(value: Mapping[str, Any], /, *, assets: Mapping[str, NDArray[np.generic]] | None = None) -> Codec:
    """Inverse of ``Codec.to_json``; ``assets`` are the arrays stored beside it.

    Raises:
        FormatError: The JSON is no codec's, or assets are given to a codec that has none.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise FormatError(f"codec: expected an object with a name, got {value!r}")
    codec = make_codec(value["name"], options={key: item for key, item in value.items() if key != "name"})
    if set(assets or {}) != set(codec.assets()):
        raise FormatError(f"codec {codec.name}: expected assets {sorted(codec.assets())}, got {sorted(assets or {})}")
    return codec
