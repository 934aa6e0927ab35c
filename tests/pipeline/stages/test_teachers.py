"""What ``sak teachers`` tells: names, costs, bytes, and where weights are."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table

from pipeline.sizes import KLT_BITS
from pipeline.stages.teachers import about_teacher, about_teachers, find_teachers, info_table, ls_table
from sak.errors import TeacherError, UnknownNameError
from sak.teachers.published import PUBLISHED
from sak.teachers.registry import TEACHERS
from sak.weights import load_weights
from store.codecs.base import LevelSpec
from store.codecs.registry import choose_codec


def shown(table: Table) -> str:
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_every_teacher_is_listed_once() -> None:
    abouts = about_teachers(find_teachers(""), view=384, cost=False)
    assert [about["name"] for about in abouts] == [*TEACHERS, *PUBLISHED]
    text = shown(ls_table(abouts))
    assert all(f" {name} " in text for name in (*TEACHERS, *PUBLISHED))
    assert "GMAC" not in text


def test_a_part_of_a_name_chooses_and_costs_are_counted() -> None:
    found = find_teachers("scenes-")
    abouts = about_teachers(found, view=96, cost=True)
    assert [about["name"] for about in abouts] == list(TEACHERS)
    text = shown(ls_table(abouts))
    assert "GMAC" in text
    assert all(
        sum(map(torch.numel, load_weights(item.weights).values())) == about["parameters"]
        for item, about in zip(found, abouts, strict=True)
        if item.weights
    )
    assert all(about["maps"] == [[96, 12, 12]] * 4 for about in abouts)


def test_one_teacher() -> None:
    (teacher,) = find_teachers("sam_vitb", exact=True)
    about = about_teacher(teacher, view=384)
    assert json.loads(json.dumps(about)) == about
    assert (about["gmac"], about["sees"]) == (482.817, [1024, 1024])
    assert about["maps"] == [[768, 64, 64]] * 4
    # The sizes that the design rests on.
    assert about["bytes"]["native"]["fp16"] == 25_165_824
    assert about["bytes"]["pooled"]["fp16"] == 3_538_944
    text = shown(info_table(about))
    for part in ("sam_vitb", "482.8 GMAC", "25.2 MB", "grid of 24 x 24 3.54 MB", "Apache-2.0", "1024 x 1024 of a view"):
        assert part in text


def test_bytes_are_those_of_the_codecs() -> None:
    (teacher,) = find_teachers("swin_tiny", exact=True)
    about = about_teacher(teacher, view=224)
    levels = [LevelSpec(components=c, height=h, width=w) for c, h, w in about["maps"]]
    for name in ("fp16", "int8", "int4"):
        codec = choose_codec(name)
        wanted = sum(part.row_bytes for i, level in enumerate(levels) for part in codec.parts(level, index=i).values())
        assert about["bytes"]["native"][name] == wanted
    assert about["bytes"]["native"]["klt"] == round(sum(level.values for level in levels) * KLT_BITS / 8)
    # A pyramid's smaller levels are not enlarged to the student's grid.
    assert about["bytes"]["pooled"]["fp16"] == 2 * (96 * 196 + 192 * 196 + 384 * 196 + 768 * 49)


@pytest.mark.parametrize(
    "file", ["dinov2_vitb14.safetensors", "vit_base_patch14_dinov2.pth", "dinov2_vitb14_pretrain.pth"]
)
def test_weights_are_found_by_any_of_their_names(tmp_path: Path, file: str) -> None:
    (without,) = find_teachers("dinov2_vitb14", weights=tmp_path, exact=True)
    (tmp_path / file).touch()
    (found,) = find_teachers("dinov2_vitb14", weights=tmp_path, exact=True)
    assert found.weights == tmp_path / file
    assert without.weights != found.weights
    about = about_teacher(found, view=56)
    assert about["recipe"] == f"{{name: dinov2_vitb14, checkpoint: {tmp_path / file}}}"
    assert "here" in shown(ls_table(about_teachers([found], view=56, cost=False)))


def test_weights_named_after_a_network_that_several_teachers_share_are_nobodys(tmp_path: Path) -> None:
    names = [name for name, entry in PUBLISHED.items() if entry.timm.startswith("vit_base_patch16_clip_224.")]
    assert len(names) > 1
    (tmp_path / "vit_base_patch16_clip_224.safetensors").write_bytes(b"")
    for name in names:
        (found,) = find_teachers(name, weights=tmp_path, exact=True)
        assert found.weights is None or found.weights.parent != tmp_path


def test_weights_in_the_hubs_cache_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models--timm--vit_base_patch14_dinov2.lvd142m"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc", encoding="utf-8")
    (folder / "snapshots" / "abc" / "model.safetensors").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (found,) = find_teachers("dinov2_vitb14", exact=True)
    assert found.weights == folder / "snapshots" / "abc" / "model.safetensors"


def test_a_shared_networks_file_is_not_taken_for_anothers(tmp_path: Path) -> None:
    """A DeiT of timm's name is no Theia."""
    (tmp_path / "deit_base_patch16_224.safetensors").touch()
    (found,) = find_teachers("theia_vitb16", weights=tmp_path, exact=True)
    assert found.weights is None
    assert about_teacher(found, view=64)["recipe"] == "{name: theia_vitb16, checkpoint: FILE}"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown teacher 'dinov2_b': expected .*perhaps .*dinov2_vitb14"):
        find_teachers("dinov2_b")
    with pytest.raises(UnknownNameError, match="unknown teacher 'sam'"):
        find_teachers("sam", exact=True)
    with pytest.raises(TeacherError, match=r"expected a folder, found none at .*gone"):
        find_teachers("sam_vitb", weights=tmp_path / "gone")
