from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sak.errors import SakError
from sak.spec import StudentSpec
from sak.student.frozen import FrozenReader, FrozenTeachers, build_frozen
from sak.student.model import build_student, parameter_counts

SPEC = StudentSpec(
    stem="vit_tiny_patch16_224",
    image_size=(32, 48),
    stem_overrides={"embed_dim": 24, "num_heads": 2},
    teacher_widths={"sam": (8, 8, 16, 16), "dino": 24},
    tasks={"semseg": 5, "depth": 1},
    paths="frozen",
    router="none",
)


def maps_of(spec: StudentSpec, *, batch: int = 2) -> dict[str, list[Tensor]]:
    """Random maps; SAM's on a finer grid than the other's."""
    draw = torch.Generator().manual_seed(1)
    return {
        name: [
            torch.randn(batch, width, *((8, 12) if name == "sam" else (4, 6)), generator=draw)
            for width in spec.level_widths(name)
        ]
        for name in spec.teacher_widths
    }


def test_every_task_is_predicted_at_image_size_from_maps_of_any_grid() -> None:
    network = build_frozen(SPEC).eval()
    output = network(maps_of(SPEC))
    assert {task: tuple(logits.shape) for task, logits in output.tasks.items()} == {
        "semseg": (2, 5, 32, 48),
        "depth": (2, 1, 32, 48),
    }
    assert output.aligned == output.gates == {}


def test_it_knows_no_stem_and_counts_what_it_has() -> None:
    counts = parameter_counts(build_frozen(SPEC))
    assert counts["total"] == counts["readers"] + counts["heads"] > 0
    assert [counts[name] for name in ("paths", "norms", "aligners", "routers")] == [0, 0, 0, 0]
    assert "stem" not in counts


def test_tasks_share_no_parameter() -> None:
    """So the best teacher of each task can be taken from runs of all tasks at once."""
    network = build_frozen(SPEC).train()
    network(maps_of(SPEC)).tasks["depth"].square().sum().backward()  # type: ignore[no-untyped-call]
    reached = {name.split(".")[1] for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert reached == {"depth"}


def test_every_level_of_every_teacher_is_read() -> None:
    network, maps = build_frozen(SPEC).eval(), maps_of(SPEC)
    leaves = {name: [level.requires_grad_() for level in levels] for name, levels in maps.items()}
    network(leaves).tasks["semseg"].square().sum().backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for levels in leaves.values() for level in levels)


def test_a_map_as_wide_as_the_heads_needs_no_layer_between() -> None:
    assert not [name for name, _ in FrozenReader({"dino": [24] * 4}, width=24).named_parameters() if "joins" in name]
    assert [name for name, _ in FrozenReader({"dino": [24] * 4}, width=32).named_parameters() if "joins" in name]


def test_it_is_a_function_of_the_teachers_order() -> None:
    """Side by side means in the spec's order, whatever order the maps come in."""
    network, maps = build_frozen(SPEC).eval(), maps_of(SPEC)
    swapped = dict(reversed(maps.items()))
    torch.testing.assert_close(network(swapped).tasks["depth"], network(maps).tasks["depth"], rtol=0, atol=0)


def test_what_it_cannot_be_is_said() -> None:
    with pytest.raises(SakError, match=r"expected the maps of sam, dino, got those of dino$"):
        build_frozen(SPEC)({"dino": maps_of(SPEC)["dino"]})
    with pytest.raises(SakError, match=r"expected a spec with paths 'frozen', got 'none'"):
        FrozenTeachers(replace(SPEC, paths="none"), width=24)
    with pytest.raises(SakError, match=r"expected a student with a stem, got 'frozen'; sak\.student\.frozen builds it"):
        build_student(SPEC)
    with pytest.raises(SakError, match=r"router: paths 'frozen' leave nothing to route"):
        replace(SPEC, router="mor")
    with pytest.raises(SakError, match=r"paths 'frozen' need a teacher, got none"):
        replace(SPEC, teacher_widths={})
    with pytest.raises(SakError, match=r"aligners: paths 'frozen' answer no teacher"):
        replace(SPEC, aligners=True)
