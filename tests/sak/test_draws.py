from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sak.draws import Share, draw_normal
from sak.student.router import Router


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 5), st.integers(0, 2**31))
def test_the_parts_of_a_batch_draw_what_the_whole_draws(sizes: list[int], width: int, seed: int) -> None:
    like, total = torch.zeros(1), sum(sizes)
    torch.manual_seed(seed)
    whole = draw_normal((total, width), share=None, like=like)
    after = torch.get_rng_state()
    parts, start = [], 0
    for size in sizes:
        torch.manual_seed(seed)  # as another rank, or the next micro-batch of a step
        parts.append(draw_normal((size, width), share=Share(start, total), like=like))
        assert torch.equal(torch.get_rng_state(), after), "all go on from the same state"
        start += size
    assert torch.equal(torch.cat(parts), whole)


@given(st.sampled_from(["image", "pixel"]), st.integers(0, 2**31))
def test_a_router_sees_no_difference(noise: str, seed: int) -> None:
    torch.manual_seed(0)
    router = Router(8, experts=3, noisy=True, noise=noise).train()
    experts = [torch.randn(6, 5, 8) for _ in range(3)]
    torch.manual_seed(seed)
    whole = router(experts[0], experts)
    for start in (0, 2, 4):
        torch.manual_seed(seed)
        rows = slice(start, start + 2)
        part = router(experts[0][rows], [expert[rows] for expert in experts], Share(start, 6))
        torch.testing.assert_close(part.tokens_BNC, whole.tokens_BNC[rows])
        torch.testing.assert_close(part.weights_BE, whole.weights_BE[rows])
