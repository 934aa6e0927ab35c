"""The assembled student: outputs, gradients, parameter table, stage-1 loading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sak.errors import CheckpointError, SakError
from sak.spec import StudentSpec
from sak.student.model import build_student, load_stage1, parameter_counts
from sak.tasks import dataset_spec
from tests.sak.student.tiny import GRID, IMAGE_SIZE, PLAIN, STAGE1, STAGE2, images

NO_ROUTER = replace(STAGE2, router="none")
SINGLE_TASK = replace(PLAIN, teacher_widths={}, tasks={"semseg": 12})
EVERY_KIND = {
    "stage1": STAGE1,
    "stage2": STAGE2,
    "no_router": NO_ROUTER,
    "no_aligner": replace(STAGE2, aligners=False, teacher_widths={"sam": 32}),
    "noiseless": replace(STAGE2, noisy_gating=False),
    "pixel_noise": replace(STAGE2, noise="pixel"),
    "pyramid_teacher": replace(STAGE2, teacher_widths={"cnn": (8, 12, 24, 40)}),
    "plain": PLAIN,
    "single_task": SINGLE_TASK,
    "four_levels_early": replace(STAGE2, levels=(0, 1, 2, 3)),
}


@pytest.mark.parametrize("spec", EVERY_KIND.values(), ids=EVERY_KIND)
def test_outputs_have_the_shapes_that_the_spec_says(spec: StudentSpec) -> None:
    student = build_student(spec)
    output = student(images())
    assert student.grid == GRID
    assert {name: [tuple(level.shape) for level in levels] for name, levels in output.aligned.items()} == {
        name: [(2, width, *GRID) for width in spec.level_widths(name)] for name in spec.teacher_widths
    }
    assert {name: tuple(logits.shape) for name, logits in output.tasks.items()} == {
        name: (2, channels, *IMAGE_SIZE) for name, channels in spec.tasks.items()
    }
    experts = 1 + len(spec.teacher_widths)
    gated = spec.tasks if spec.router == "mor" else {}
    assert {name: [tuple(w.shape) for w in weights] for name, weights in output.gates.items()} == {
        name: [(2, experts)] * 4 for name in gated
    }


@pytest.mark.parametrize("spec", EVERY_KIND.values(), ids=EVERY_KIND)
def test_every_parameter_gets_a_finite_gradient(spec: StudentSpec) -> None:
    torch.manual_seed(0)
    student = build_student(spec).train()
    output = student(images())
    values = [*output.tasks.values(), *(level for levels in output.aligned.values() for level in levels)]
    sum((value * torch.randn_like(value)).sum() for value in values).backward()  # type: ignore[union-attr]
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # Batch normalisation takes away the bias of the convolution before it.
        assert name.endswith("fuse.bias") or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("spec", [STAGE2, PLAIN, NO_ROUTER], ids=["stage2", "plain", "no_router"])
def test_leaving_out_the_aligned_maps_changes_no_prediction(spec: StudentSpec) -> None:
    student = build_student(spec).eval()
    full, lean = student(images()), student(images(), with_aligned=False)
    assert lean.aligned == {}
    for task, logits in full.tasks.items():
        assert torch.equal(logits, lean.tasks[task])


def test_evaluation_is_deterministic_and_training_is_noisy() -> None:
    student = build_student(STAGE2).eval()
    assert torch.equal(student(images()).tasks["edge"], student(images()).tasks["edge"])
    student.train()
    assert not torch.equal(student(images()).gates["edge"][0], student(images()).gates["edge"][0])


@pytest.mark.parametrize("spec", [STAGE2, PLAIN, NO_ROUTER], ids=["stage2", "plain", "no_router"])
def test_autocast_stays_close_to_full_precision(spec: StudentSpec) -> None:
    torch.manual_seed(0)
    student = build_student(replace(spec, noisy_gating=False)).train()
    full = student(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = student(images())
    for task, logits in full.tasks.items():
        assert half.tasks[task].isfinite().all()
        torch.testing.assert_close(half.tasks[task].float(), logits, rtol=0.1, atol=0.1)
    for name, levels in full.aligned.items():
        for got, expected in zip(half.aligned[name], levels, strict=True):
            torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1)
    sum(logits.float().mean() for logits in half.tasks.values()).backward()  # type: ignore[union-attr]


def test_the_same_seed_builds_the_same_student() -> None:
    torch.manual_seed(3)
    first = build_student(STAGE2).state_dict()
    torch.manual_seed(3)
    second = build_student(STAGE2).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_without_a_router_heads_read_the_plain_sum() -> None:
    student = build_student(NO_ROUTER).eval()
    seen: list[list[torch.Tensor]] = []
    student.heads["edge"].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    output = student(images())
    stem_only = build_student(replace(NO_ROUTER, paths="none", teacher_widths={}))
    stem_only.load_state_dict({k: v for k, v in student.state_dict().items() if k.startswith(("stem.", "heads."))})
    stem_only.heads["edge"].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    stem_only.eval()(images())
    normed = []
    for name in student.norms:
        handle = student.norms[name][3].register_forward_hook(lambda _m, _i, out: normed.append(out))  # type: ignore[index]
        student(images())
        handle.remove()
    torch.testing.assert_close(seen[0][3], seen[1][3] + sum(normed))
    assert output.gates == {}


def test_blocks_beyond_the_last_level_are_cut() -> None:
    student = build_student(replace(STAGE1, levels=(0, 1, 2, 3)))
    assert not any(name.startswith("stem.blocks.4.") for name in student.state_dict())
    assert sum(name.endswith(".scale") for name in student.state_dict()) == 2 * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (0, 1, 2, 5)}, "below 5"),
        ({"aligners": False}, "set aligners to true"),
        ({"down_ratio": 64}, "lower it"),
    ],
)
def test_a_spec_that_its_stem_cannot_serve_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SakError, match=message):
        build_student(replace(STAGE2, **changes))  # type: ignore[arg-type]


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(SakError, match=r"\(16, 24\), got \(24, 24\)"):
        build_student(STAGE1)(torch.zeros(1, 3, 24, 24))


PUBLISHED = {
    ("vit_small_patch16_384", "pascalcontext"): 33.80,
    ("vit_small_patch16_384", "nyud"): 32.02,
    ("vit_base_patch16_384", "pascalcontext"): 133.51,
    ("vit_base_patch16_384", "nyud"): 126.40,
    ("vit_large_patch16_384", "pascalcontext"): 406.67,
    ("vit_large_patch16_384", "nyud"): 394.06,
}


@pytest.mark.parametrize(("stem", "dataset"), PUBLISHED)
def test_parameter_totals_are_the_published_ones(stem: str, dataset: str) -> None:
    width = {"vit_small": 384, "vit_base": 768, "vit_large": 1024}[stem.split("_patch")[0]]
    spec = StudentSpec(
        stem=stem,
        image_size=(512, 512) if dataset == "pascalcontext" else (448, 576),
        teacher_widths=dict.fromkeys(("dinov2", "clip", "sam"), width),
        tasks={name: task.channels for name, task in dataset_spec(dataset).tasks.items()},
    )
    with torch.device("meta"):
        counts = parameter_counts(build_student(spec))
    assert counts["total"] / 1e6 == pytest.approx(PUBLISHED[stem, dataset], abs=0.006)
    assert counts["total"] == sum(count for name, count in counts.items() if name != "total")


def test_stage_1_weights_fill_everything_but_routers_and_heads() -> None:
    stage1, stage2 = build_student(STAGE1), build_student(STAGE2)
    report = load_stage1(stage2, stage1.state_dict())
    assert set(report.matched) == set(stage1.state_dict())
    assert set(report.new) == set(stage2.state_dict()) - set(stage1.state_dict())
    assert report.resized == report.left_out == ()
    for name, tensor in stage1.state_dict().items():
        assert torch.equal(stage2.state_dict()[name], tensor), name


def test_stage_1_position_embedding_follows_the_image_size() -> None:
    square = build_student(replace(STAGE1, image_size=(24, 24)))
    stage2 = build_student(STAGE2)
    report = load_stage1(stage2, square.state_dict())
    assert report.resized == ("stem.pos_embed",)
    assert report.story().startswith(f"{len(square.state_dict())} tensors loaded (stem ")
    assert ", 1 resized (stem 1), " in report.story()
    assert torch.isfinite(stage2(images()).tasks["edge"]).all()
    wide = build_student(replace(STAGE1, image_size=(32, 24)))
    with pytest.raises(SakError, match="source grid"):
        load_stage1(stage2, wide.state_dict())
    load_stage1(stage2, wide.state_dict(), source_grid=(4, 3))


def test_stage_1_weights_of_another_student_are_refused_with_the_list() -> None:
    other = build_student(replace(STAGE1, teacher_widths={"sam": 24, "dino": 40})).state_dict()
    with pytest.raises(CheckpointError) as caught:
        load_stage1(build_student(STAGE2), other, where="stage1.safetensors")
    for part in ("stage1.safetensors", "missing: paths.clip.0.scale", "unexpected: paths.dino.0.scale"):
        assert part in str(caught.value)


def test_a_plain_student_may_drop_its_aligners() -> None:
    distilled = build_student(replace(PLAIN, tasks={}))
    student = build_student(SINGLE_TASK)
    with pytest.raises(CheckpointError, match=r"norms\.sam"):
        load_stage1(student, distilled.state_dict())
    report = load_stage1(student, distilled.state_dict(), drop=("norms.", "aligners."))
    dropped = [name for name in distilled.state_dict() if name.startswith(("norms.", "aligners."))]
    assert report.to_json()["left_out"] == dropped != []


def test_a_trained_student_goes_on_with_its_heads_but_not_with_half_of_one() -> None:
    state = build_student(STAGE2).state_dict()
    student = build_student(STAGE2)
    assert load_stage1(student, state).new == ()
    assert torch.equal(student.state_dict()["heads.edge.classify.bias"], state["heads.edge.classify.bias"])
    without = {name: tensor for name, tensor in state.items() if not name.startswith("heads.edge.")}
    assert {name.rpartition(".")[0] for name in load_stage1(student, without).new} >= {"heads.edge.classify"}
    del state["heads.edge.classify.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: heads\.edge\.classify\.bias"):
        load_stage1(student, state)
    with pytest.raises(CheckpointError, match=r"unexpected: routers\.edge"):
        load_stage1(build_student(replace(STAGE2, tasks={"semseg": 12, "normals": 3})), without | state)


@pytest.mark.parametrize("spec", EVERY_KIND.values(), ids=EVERY_KIND)
def test_recomputed_activations_give_the_same_losses_and_gradients(spec: StudentSpec) -> None:
    """Bit for bit, router noise included; and fewer values are kept for the backward pass."""

    def run(checkpointing: bool) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        student = build_student(spec).train()
        student.checkpointing = checkpointing
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = student(images())
            values = [*output.tasks.values(), *(level for levels in output.aligned.values() for level in levels)]
            loss = torch.stack([value.square().sum() for value in values]).sum()
        loss.backward()
        return [loss.detach(), *(p.grad for p in student.parameters() if p.grad is not None)], sum(kept.values())

    plain, recomputed = run(False), run(True)
    assert all(torch.equal(one, other) for one, other in zip(plain[0], recomputed[0], strict=True))
    assert recomputed[1] < plain[1]


@pytest.mark.parametrize("spec", EVERY_KIND.values(), ids=EVERY_KIND)
def test_some_teachers_alone_get_what_they_would_among_all(spec: StudentSpec) -> None:
    student = build_student(spec).eval()
    one = next(iter(spec.teacher_widths), "none")
    with torch.no_grad():
        every, some, none = (student(images(), teachers=teachers) for teachers in (None, [one], []))
    assert set(some.aligned) == {one} & set(spec.teacher_widths)
    assert all(
        torch.equal(a, b) for name in some.aligned for a, b in zip(some.aligned[name], every.aligned[name], strict=True)
    )
    assert none.aligned == {}
    assert all(torch.equal(every.tasks[task], other.tasks[task]) for task in every.tasks for other in (some, none))


def test_paths_that_nothing_needs_are_not_computed() -> None:
    student = build_student(STAGE1).train()
    sum(level.sum() for level in student(images(), teachers=["clip"]).aligned["clip"]).backward()  # type: ignore[union-attr]
    touched = {
        name.split(".")[1] for name, p in student.named_parameters() if p.grad is not None and "stem" not in name
    }
    assert touched == {"clip"}


def test_a_stem_starts_from_the_hub_or_a_file_not_both() -> None:
    with pytest.raises(CheckpointError, match="both"):
        build_student(STAGE1, pretrained=True, checkpoint=Path("x.pth"))
