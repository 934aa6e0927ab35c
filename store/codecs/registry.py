"""The table of codecs; a new one is its module, one line here and one golden file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from store.codecs.base import Codec, Fitter, LevelSpec
from store.codecs.bf16 import Bf16
from store.codecs.fp16 import Fp16
from store.codecs.fp32 import Fp32
from store.codecs.int4 import Int4
from store.codecs.int8 import Int8
from store.codecs.klt import Klt, KltSettings
from store.codecs.klt_fit import KltFitter
from store.errors import FormatError

__all__ = [
    "CODECS",
    "FITTERS",
    "CodecChoice",
    "choice_json",
    "choose_codec",
    "codec_from_json",
    "is_fitted",
    "make_codec",
    "make_fitter",
]

CodecChoice: TypeAlias = str | Mapping[str, Any]
"""A codec as a recipe gives it: a name, or a mapping of ``name`` and options, ``{"name": "fp16", "clip": True}``."""

CODECS: Mapping[str, Any] = {
    "fp32": Fp32,
    "fp16": Fp16,
    "bf16": Bf16,
    "int8": Int8,
    "int4": Int4,
    "klt": Klt,
}
# Codecs that are fitted to a sample: their settings, and what makes a codec of settings and a sample.
FITTERS: Mapping[str, tuple[Any, Any]] = {"klt": (KltSettings, KltFitter)}


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
    build = CODECS[_known(name)]
    known = [field.name for field in fields(build) if field.init and field.name != "fitted"]
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise FormatError(f"codec {name}: unknown options {unknown}; it has {known}")
    if bool(fitted) != any(field.name == "fitted" for field in fields(build)):
        raise FormatError(f"codec {name}: expected its fitted arrays and no others, got {sorted(fitted or {})}")
    codec: Codec = build(**(options or {}), **({"fitted": fitted} if fitted else {}))
    return codec


def choose_codec(choice: CodecChoice, /) -> Codec:
    """The codec of a choice that needs no fitting.

    Raises:
        FormatError: The name or an option is unknown, an option's value is refused, or the codec needs fitting.
    """
    if is_fitted(choice):
        raise FormatError(f"codec {_name(choice)}: it is fitted to data, so sak extract alone can make one")
    return make_codec(_name(choice), options=_options(choice))


def is_fitted(choice: CodecChoice, /) -> bool:
    """Whether a choice names a codec that must be fitted to a sample before it can encode.

    Raises:
        FormatError: The name is unknown.
    """
    return _name(choice) in FITTERS


def make_fitter(choice: CodecChoice, /, levels: Sequence[LevelSpec]) -> Fitter:
    """What fits the codec of a choice to a sample.

    Raises:
        FormatError: The codec needs no fitting, an option is unknown, or its value is refused.
    """
    if not is_fitted(choice):
        raise FormatError(f"codec {_name(choice)}: expected one that is fitted ({', '.join(FITTERS)})")
    settings, build = FITTERS[_name(choice)]
    fitter: Fitter = build(_settings(settings, _name(choice), _options(choice)), tuple(levels))
    return fitter


def choice_json(choice: CodecChoice, /) -> dict[str, Any]:
    """All options of a choice, defaults included: what ``to_json`` of any codec made of it returns.

    Raises:
        FormatError: The name or an option is unknown, or an option's value is refused.
    """
    if not is_fitted(choice):
        return choose_codec(choice).to_json()
    settings, _ = FITTERS[_name(choice)]
    filled: dict[str, Any] = _settings(settings, _name(choice), _options(choice)).to_json()
    return filled


def codec_from_json(value: Mapping[str, Any], /, *, assets: Mapping[str, NDArray[np.generic]] | None = None) -> Codec:
    """Inverse of ``Codec.to_json``; ``assets`` are the arrays stored beside it.

    Raises:
        FormatError: The JSON is no codec's, or assets are given to a codec that has none.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise FormatError(f"codec: expected an object with a name, got {value!r}")
    options = {key: item for key, item in value.items() if key != "name"}
    return make_codec(value["name"], options=options, fitted=assets)


def _known(name: object) -> str:
    if not isinstance(name, str) or name not in CODECS:
        raise FormatError(f"codec: expected one of {', '.join(CODECS)}, got {name!r}")
    return name


def _name(choice: CodecChoice) -> str:
    return _known(choice.get("name") if isinstance(choice, Mapping) else choice)


def _options(choice: CodecChoice) -> dict[str, Any]:
    return {} if isinstance(choice, str) else {key: item for key, item in choice.items() if key != "name"}


def _settings(build: Any, name: str, options: Mapping[str, Any]) -> Any:
    known = [field.name for field in fields(build)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise FormatError(f"codec {name}: unknown options {unknown}; it has {known}")
    return build(**options)
