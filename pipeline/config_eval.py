"""The part of a recipe that describes scoring."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.config_checks import not_negative, positive
from pipeline.config_teachers import STRICT, CodecValue
from store.codecs.registry import choice_json

__all__ = ["EvalConfig"]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class EvalConfig:
    """Scoring of the student alone on ``data.eval``; ``gallery`` images go into the report.

    ``save`` writes every task's map of every image, and contact sheets: into the score's own folder (true), or into
    ``save/RUN``. It changes no score, and what is scored already is not scored again.

    ``codec`` is how the held-out images' columns are stored, where not as ``extract.codec`` says. A loss against
    decoded targets measures the codec too, so students of different codecs need one exact yardstick.

    ``boundary`` is how boundaries are scored: ``pixel`` by pixel (maxF for scenes, the published loss elsewhere), or by
    the field's odsF as well, which then stands in the table; ``odsF`` is SAK's protocol, and the others' numbers do not
    compare with it. It counts a quarter of a second a 375 x 500 image.

    Attributes:
        absent_classes: What a class that occurs neither in labels nor in predictions counts in mIoU: 0, as published,
            or nothing.
        held_out_loss: Whether the loss against teachers is measured as well. ``auto``: from stored columns, where the
            network is still aligned to teachers, and with live teachers only if there is nothing else to score.
            ``always``: with live ones too, where the last stage had such targets. ``never``: no column of held-out
            images is needed.
        resolution: ``view`` scores at the size of ``data.eval.view``, where the padding of ``padded`` views counts
            nothing; ``image`` at the image's own size against its own labels, for ``full`` views, which are another
            size.
    """

    batch: int = 16
    gallery: int = 6
    save: bool | str = False
    codec: CodecValue | None = None
    boundary: Literal["pixel", "odsF", "odsF-invpt", "odsF-mtinet"] = "pixel"
    absent_classes: Literal["zero", "ignore"] = "zero"
    held_out_loss: Literal["auto", "always", "never"] = "auto"
    resolution: Literal["view", "image"] = "view"

    def __post_init__(self) -> None:
        if self.codec is not None:
            choice_json(self.codec)
        if self.save == "":
            raise ValueError("eval.save: expected true, false or a folder, got an empty text")
        positive("eval", {"batch": self.batch})
        not_negative("eval", {"gallery": self.gallery})
