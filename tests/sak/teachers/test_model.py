"""Teachers give the published maps, cover the view they are shown, and refuse weights that are not theirs."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from sak.errors import CheckpointError, SakError, TeacherError, UnknownNameError
from sak.teachers.identity import teacher_identity
from sak.teachers.model import Teacher, load_teacher
from sak.teachers.registry import TEACHERS
from sak.teachers.spec import TeacherSpec
from sak.weights import save_weights
from tests.golden_fill import fill

SHARED = Path(__file__).resolve().parents[3] / "../shared"
SMALL = Path(__file__).resolve().parents[2] / "golden" / "sak_teachers_small.npz"
CASES = {
    "dinov2_small": "vit_small_patch14_dinov2",
    "dinov2_base": "vit_base_patch14_dinov2",
    "openaiclip_base": "vit_base_patch16_clip_224.openai",
    "timmclip_base": "vit_base_patch16_clip_384",
}
TINY = TeacherSpec(
    name="tiny",
    timm="vit_tiny_patch16_224",
    random=7,
    overrides={"img_size": 32, "embed_dim": 24, "depth": 8, "num_heads": 3},
)


@pytest.fixture(scope="module")
def tiny() -> Teacher:
    return load_teacher(TINY)


def pixels(rows: int, columns: int, *, images: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (images, 3, rows, columns), dtype=torch.uint8, generator=generator)


def golden_teacher(case: str, size: tuple[int, int], path: Path) -> Teacher:
    """The case's network at the case's input size, with the golden weights loaded from a file."""
    spec = TeacherSpec(name=case, timm=CASES[case], checkpoint=path, overrides={"img_size": size})
    network = timm.create_model(spec.timm, num_classes=0, img_size=size)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    save_weights(path, {name: fill(name, shape) for name, shape in shapes.items()})
    return load_teacher(spec)


@pytest.mark.parametrize("case", CASES)
def test_parity_with_the_published_maps(case: str, tmp_path: Path) -> None:
    file = SMALL if case == "dinov2_small" else SHARED / "golden" / "sak_reference_teachers.npz"
    if not file.is_file():
        pytest.skip("the full golden file is not here; dinov2_small travels with the project")
    with np.load(file, allow_pickle=False) as golden:
        rows, columns = (int(side) for side in golden[f"{case}/size"])
        wanted = [torch.from_numpy(golden[f"{case}/{level}"]) for level in range(4)]
    teacher = golden_teacher(case, (rows, columns), tmp_path / "w.safetensors")
    image = np.random.RandomState(21).standard_normal((1, 3, rows, columns)).astype(np.float32)
    maps = teacher.features(torch.from_numpy(image))
    assert teacher.levels == (2, 5, 8, 11)
    for got, expected in zip(maps, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_forward_gives_four_float32_maps_of_any_view(tiny: Teacher) -> None:
    assert tiny.levels == (1, 3, 5, 7)
    for rows, columns in ((32, 32), (48, 96)):
        maps = tiny(pixels(rows, columns, images=2))
        assert [tuple(feat.shape) for feat in maps] == [(2, 24, rows // 16, columns // 16)] * 4
        assert all(feat.dtype == torch.float32 and bool(feat.isfinite().all()) for feat in maps)
    assert tiny.widths == (24, 24, 24, 24)


def test_last_level_is_the_stream_before_the_final_norm(tiny: Teacher) -> None:
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        tokens = tiny.network.forward_features(image)
        feat = tiny.features(image)[3]
        wanted = tiny.network.norm(feat.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens[:, 1:], wanted)


def test_exact_alignment_covers_the_view_and_reference_drops_a_strip() -> None:
    """Pixels in the strip beyond the last whole patch reach the maps only in exact alignment."""
    view = pixels(40, 40)
    changed = view.clone()
    changed[..., 33:] = 0
    for alignment, sees in (("exact", True), ("reference", False)):
        teacher = load_teacher(replace(TINY, alignment=alignment))
        before, after = teacher(view), teacher(changed)
        assert before[0].shape[-2:] == (2, 2)
        assert torch.equal(before[3], after[3]) is not sees


def test_long_side_pad_cuts_padding_unless_told_not_to() -> None:
    view = pixels(30, 60)
    spec = replace(TINY, resize="long_side_pad", input_size=(64, 64))
    exact = load_teacher(spec)
    prepared = exact.prepare(view)
    assert prepared.content == (32, 64)
    assert prepared.image_BCHW.shape == (1, 3, 64, 64)
    assert not prepared.image_BCHW[..., 32:, :].any()
    maps, padded = exact(view), load_teacher(replace(spec, alignment="reference"))(view)
    assert maps[0].shape[-2:] == (2, 4)
    assert padded[0].shape[-2:] == (4, 4)


def test_maps_are_pooled_to_the_grid_after_padding_is_cut() -> None:
    """What padding shows the network never reaches a pooled map: it is the mean over the image's own cells."""
    view = pixels(30, 60)
    spec = replace(TINY, resize="long_side_pad", input_size=(64, 64))
    maps, pooled = load_teacher(spec)(view), load_teacher(replace(spec, grid=(1, 2)))(view)
    padded = load_teacher(replace(spec, alignment="reference"))(view)
    for feat, small, whole in zip(maps, pooled, padded, strict=True):
        assert (feat.shape[-2:], small.shape[-2:], whole.shape[-2:]) == ((2, 4), (1, 2), (4, 4))
        torch.testing.assert_close(small, feat.unflatten(-1, (2, 2)).mean((-1, -3), keepdim=False)[:, :, None])
        assert not torch.allclose(small, whole.unflatten(-1, (2, 2)).mean((-1, -3))[:, :, None], atol=1e-2)


def test_a_grid_enlarges_nothing(tiny: Teacher) -> None:
    view = pixels(32, 64)
    same = load_teacher(replace(TINY, grid=(2, 4)))(view)
    assert all(torch.equal(a, b) for a, b in zip(tiny(view), same, strict=True))
    for grid in ((3, 4), (2, 5)):
        with pytest.raises(TeacherError, match=r"'tiny': grid: expected at most \(2, 4\).*grid: native"):
            load_teacher(replace(TINY, grid=grid))(view)
    pyramid = load_teacher(TeacherSpec(name="net", timm="tf_efficientnet_lite0", random=0, grid=(4, 6)))
    assert [tuple(feat.shape[-2:]) for feat in pyramid(pixels(50, 70))] == [(4, 6), (4, 6), (4, 5), (2, 3)]


def test_squash_goes_to_the_input_size() -> None:
    teacher = load_teacher(replace(TINY, input_size=(32, 64)))
    assert teacher(pixels(50, 50))[0].shape[-2:] == (2, 4)


def test_normalization_changes_the_maps(tiny: Teacher) -> None:
    view = pixels(32, 32)
    reference = load_teacher(replace(TINY, normalization="reference"))
    assert tiny.mean.tolist() == [0.5, 0.5, 0.5]
    assert reference.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert not torch.allclose(tiny(view)[3], reference(view)[3])


def test_teachers_are_frozen_for_good(tiny: Teacher) -> None:
    parent = torch.nn.Sequential(tiny).train()
    assert parent.training
    assert not any(module.training for module in tiny.modules())
    assert not any(parameter.requires_grad for parameter in tiny.parameters())


def test_maps_can_be_targets(tiny: Teacher) -> None:
    """Maps from inference mode could not be saved for a backward pass."""
    scale = torch.ones((), requires_grad=True)
    (tiny(pixels(32, 32))[0] * scale).sum().backward()
    assert scale.grad is not None


def test_random_weights_follow_from_the_seed(tiny: Teacher) -> None:
    view = pixels(32, 32)
    again, other = load_teacher(TINY), load_teacher(replace(TINY, random=8))
    assert torch.equal(tiny(view)[3], again(view)[3])
    assert not torch.allclose(tiny(view)[3], other(view)[3])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_with_any_head_load(tiny: Teacher, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    state = tiny.network.state_dict() | {"head.weight": torch.zeros(10, 24), "head.bias": torch.zeros(10)}
    if suffix == ".pth":
        torch.save({"model": state}, path)
    else:
        save_weights(path, {name: tensor.half() for name, tensor in state.items()})
    loaded = load_teacher(replace(TINY, random=None, checkpoint=path))
    tolerance = 0 if suffix == ".pth" else 2e-2
    torch.testing.assert_close(loaded(pixels(32, 32))[0], tiny(pixels(32, 32))[0], rtol=tolerance, atol=tolerance)


def test_wrong_checkpoints_are_refused_by_key(tiny: Teacher, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = tiny.network.state_dict()
    save_weights(
        path, {name: tensor for name, tensor in state.items() if name != "cls_token"} | {"extra.x": torch.ones(1)}
    )
    with pytest.raises(CheckpointError, match=r"teacher 'tiny'.*cls_token.*extra\.x"):
        load_teacher(replace(TINY, random=None, checkpoint=path))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"timm": "vit_tinny"}, UnknownNameError, "unknown timm model"),
        ({"levels": (2, 4, 6, 8)}, TeacherError, r"4 of the 8 blocks of vit_tiny_patch16_224 \(0 to 7\)"),
        ({"overrides": {"depht": 8}}, TeacherError, "cannot build.*depht.*check the overrides"),
        ({"overrides": {"depth": 3}}, TeacherError, "4 of the 3 blocks"),
        ({"random": None, "builtin": "nobody"}, TeacherError, "built-in teacher weights 'nobody'"),
        ({"random": None, "checkpoint": Path("gone.pth")}, TeacherError, "no file at gone.pth"),
    ],
)
def test_impossible_teachers_are_refused(fields: dict[str, Any], error: type[SakError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_teacher(replace(TINY, **fields))


def test_without_a_network_the_error_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(TeacherError, match=r"Name or service not known.*checkpoint: PATH"):
        load_teacher(replace(TINY, random=None, pretrained=True))


def test_input_that_a_network_cannot_take_is_named() -> None:
    teacher = load_teacher(TeacherSpec(name="swin", timm="swin_tiny_patch4_window7_224", random=0, input_size=(96, 96)))
    with pytest.raises(TeacherError, match=r"teacher 'swin'.*takes no input of \(96, 96\).*img_size"):
        teacher(pixels(96, 96))


def test_feature_stages_of_a_convolutional_network() -> None:
    teacher = load_teacher(TeacherSpec(name="net", timm="tf_efficientnet_lite0", random=0))
    maps = teacher(pixels(50, 70))
    assert teacher.levels == (1, 2, 3, 4)
    assert [feat.shape[1] for feat in maps] == list(teacher.widths) == [24, 40, 112, 320]
    assert [tuple(feat.shape[-2:]) for feat in maps] == [(13, 18), (7, 9), (4, 5), (2, 3)]


@pytest.mark.parametrize("name", TEACHERS)
def test_builtin_architectures(name: str) -> None:
    maps = load_teacher(replace(TEACHERS[name], builtin=None, random=0))(pixels(96, 96))
    assert [tuple(feat.shape) for feat in maps] == [(1, 96, 12, 12)] * 4


@pytest.mark.parametrize("name", TEACHERS)
def test_builtin_weights_load_and_are_small(name: str) -> None:
    path = Path(str(resources.files("sak.teachers"))) / "weights" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip("the built-in weights have not been trained in this checkout")
    assert path.stat().st_size <= 3 * 2**20
    maps = load_teacher(TEACHERS[name])(pixels(96, 96))
    assert all(bool(feat.isfinite().all()) for feat in maps)


REAL = {
    "sam2": TeacherSpec(
        name="sam2",
        timm="sam2_hiera_tiny",
        checkpoint=SHARED / "teachers/sam2_hiera_tiny.safetensors",
        levels=(3, 5, 7, 9),
        input_size=(256, 256),
        resize="long_side_pad",
    ),
    "sam2-pyramid": TeacherSpec(
        name="sam2-pyramid",
        timm="sam2_hiera_tiny",
        checkpoint=SHARED / "teachers/sam2_hiera_tiny.safetensors",
        levels=(0, 2, 9, 11),
        input_size=(256, 256),
    ),
    "efficientnet": TeacherSpec(
        name="efficientnet",
        timm="tf_efficientnet_lite0",
        checkpoint=SHARED / "teachers/tf_efficientnet_lite0.safetensors",
        input_size=(224, 224),
    ),
}
GRIDS = {
    "sam2": [(384, 12, 16)] * 4,
    "sam2-pyramid": [(96, 64, 64), (192, 32, 32), (384, 16, 16), (768, 8, 8)],
    "efficientnet": [(24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7)],
}


@pytest.mark.parametrize("name", REAL)
def test_real_teachers_on_real_photos(name: str) -> None:
    spec = REAL[name]
    photos = sorted((SHARED / "photos/nature").glob("*.jpg"))[:2]
    if spec.checkpoint is None or not spec.checkpoint.is_file() or not photos:
        pytest.skip("needs the pretrained networks and photographs, which are not part of the project")
    teacher = load_teacher(spec)
    views = [np.asarray(Image.open(photo).convert("RGB").resize((320, 240))) for photo in photos]
    maps = teacher(torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous())
    assert [tuple(feat.shape[1:]) for feat in maps] == GRIDS[name]
    for feat, width in zip(maps, teacher.widths, strict=True):
        assert feat.shape[1] == width
        # Real features: finite, and different for different photographs.
        assert bool(feat.isfinite().all())
        cosine = torch.nn.functional.cosine_similarity(feat[0].flatten(), feat[1].flatten(), dim=0)
        assert cosine < 0.98


ARITHMETIC: list[dict[str, Any]] = [{"precision": "bf16"}, {"channels_last": True}, {"precision": "fp16"}]


def arithmetic_spec(name: str = "vit_tiny_patch16_224", **asked: Any) -> TeacherSpec:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2} if "vit" in name else {}
    return TeacherSpec(name="t", timm=name, random=0, overrides=sizes, **asked)


@pytest.mark.parametrize("asked", [*ARITHMETIC, {"compiled": True}])
def test_how_a_network_is_computed_is_part_of_what_its_maps_are(asked: dict[str, Any]) -> None:
    plain, other = teacher_identity(arithmetic_spec()), teacher_identity(arithmetic_spec(**asked))
    assert other == plain | {"arithmetic": asked}
    assert "arithmetic" not in plain, "columns that were there before keep their names"


def test_bf16_and_channels_last_give_about_the_same_maps() -> None:
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in ("vit_tiny_patch16_224", "resnet18"):
        exact = load_teacher(arithmetic_spec(name))(pixels)
        for asked, error in (({"precision": "bf16"}, 0.1), ({"channels_last": True}, 1e-5)):
            maps = load_teacher(arithmetic_spec(name, **asked))(pixels)
            assert all(feat.dtype == torch.float32 and feat.is_contiguous() for feat in maps)
            errors = [float((one - two).norm() / two.norm()) for one, two in zip(maps, exact, strict=True)]
            assert max(errors) < error
            assert (max(errors) > 1e-4) == ("precision" in asked)


def test_half_precision_on_a_cpu_is_refused() -> None:
    with pytest.raises(TeacherError, match="fp16 needs a GPU"):
        load_teacher(arithmetic_spec(precision="fp16"))(torch.zeros((1, 3, 32, 32), dtype=torch.uint8))
    with pytest.raises(TeacherError, match="precision: expected one of fp32, bf16, fp16, got 'int4'"):
        arithmetic_spec(precision="int4")


@pytest.mark.slow
def test_a_compiled_teacher_gives_about_the_same_maps() -> None:
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact, maps = (load_teacher(arithmetic_spec(compiled=compiled))(pixels) for compiled in (False, True))
    for one, two in zip(maps, exact, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
