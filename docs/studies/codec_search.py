"""Bits per value of ideas for a small codec, on one column of floats: ``codec_search.py STORE VIEW_SET/COLUMN``.

Held-out rows are coded by every idea at one fidelity: the step of each level is searched until that level's mean token
cosine is 0.988, and again until its relative error is 0.3. Bits are those of bytes as codec ``klt`` lays them out (kept
coefficients, packed, one zstd block a group) unless the table says otherwise.

Legend: N rows, T tokens, C components, H W the token grid, u v frequencies, D coefficients, M blocks, P parents.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import constriction
import numpy as np
import zstandard
from numcodecs import Blosc, zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pcodec import ChunkConfig, standalone

import store
from store.codecs.base import LevelSpec
from store.codecs.blocks import Blocks, block_sides, from_blocks, to_blocks
from store.codecs.klt import apply_matrix
from store.codecs.packing import GROUPS, pack, packed_bytes
from store.codecs.registry import make_fitter
from store.codecs.rotation import rotate, unrotate

__all__: list[str] = []

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Maps = list[Floats]  # one (N, C, H, W) a level
COSINE, ERROR = 0.988, 0.3
FINER = 12288  # bytes between finer cuts
CLASSES = 200  # of equal size in order of variance, each with one table: the model behind "entropy"


class Zone(NamedTuple):
    """How magnitudes round.

    ``at``: up from this fraction of a step. ``own``: zero reaches further where a coefficient is rarely used, up to
    where the error saved is worth the bits. ``nearer``: read back as the mean of what a group rounds, not the multiple.
    """

    at: float = 0.6
    own: bool = False
    nearer: bool = True


class Idea(NamedTuple):
    """A transform.

    ``side``: of its blocks, in tokens. ``parents``: from how many levels before each is predicted, ``down``: from the
    last level to the first. ``normed``: tokens are divided by their norms. ``placed``: a mean for every position, not
    one for all. ``patch``: the basis is of square patches of so many tokens' components together.
    """

    name: str
    side: int = 8
    parents: int = 0
    down: bool = False
    zone: Zone = Zone()
    normed: bool = False
    placed: bool = False
    patch: int = 1


class Plan(NamedTuple):
    """How coefficients become bytes at one step, decided on fitted rows."""

    step: float
    order: NDArray[np.int64]  # kept coefficients, widest group first
    groups: list[int]  # how many of them lie in each of GROUPS
    nearer: Floats  # (D,) of the kept
    zero_below: Floats  # (D,) of the kept
    up_at: float


class Level(NamedTuple):
    """Fitted transform of one level, and what it makes of the rows."""

    basis: Floats
    blocks: Blocks
    guesses: tuple[Floats, Floats]  # predictions of fitted and held-out maps
    coefs: tuple[Floats, Floats]  # (N, D, M) of what they leave
    variance: Floats  # (D,)
    truth: Floats  # held-out map
    gain: Floats  # what a decoded held-out map is multiplied by
    patch: int


class Coded(NamedTuple):
    """Held-out rows of one level, coded."""

    plan: Plan
    integers: Ints  # (N, kept D, M)
    decoded: Floats  # (N, C, H, W)
    cosine: float
    error: float
    bound: float  # bits a value of independent Gaussians with the fitted variances, at the same squared error


class Target(NamedTuple):
    """Fidelity at which ideas are compared."""

    cosine: bool
    value: float

    def miss(self, cosine: float, error: float) -> float:
        """Logarithm of the error energy over what is asked."""
        return float(np.log((1 - cosine) / (1 - self.value) if self.cosine else (error / self.value) ** 2))


class Row(NamedTuple):
    """One idea at one fidelity: numbers of every level, and mean bits of every row."""

    bits: list[float]
    finer: float  # mean bits with more cuts and without matches
    entropy: list[float]
    bound: list[float]
    rows_bits: NDArray[np.float64]


TARGETS = (Target(True, COSINE), Target(False, ERROR))
Steps = dict[tuple[int, Target, bool], float]
"""Steps found so far: of level, target and whether tokens were normed."""

# Measures


def cosine_of(truth_NCHW: Floats, decoded_NCHW: Floats) -> float:
    """Mean over tokens."""
    dot, truth, decoded = (
        np.einsum("nchw,nchw->nhw", one, other)
        for one, other in ((truth_NCHW, decoded_NCHW), (truth_NCHW, truth_NCHW), (decoded_NCHW, decoded_NCHW))
    )
    return float((dot / np.sqrt(np.maximum(truth * decoded, 1e-20))).mean())


def error_of(truth_NCHW: Floats, decoded_NCHW: Floats) -> float:
    """Norm of the difference over norm of the truth."""
    return float(np.linalg.norm(truth_NCHW - decoded_NCHW) / np.linalg.norm(truth_NCHW))


def entropy_bits(integers_NDM: Ints, values: int) -> float:
    """Empirical entropy a value (a row has ``values``) with one table for each class of coefficients."""
    total = 0.0
    for members in np.array_split(np.arange(integers_NDM.shape[1]), min(CLASSES, integers_NDM.shape[1])):
        some = integers_NDM[:, members].ravel()
        counts = np.bincount(some - some.min())
        counts = counts[counts > 0]
        total -= float((counts * np.log2(counts / some.size)).sum())
    return total / values / len(integers_NDM)


def gaussian_bound(variance_D: Floats, error: float) -> float:
    """Bits a value of independent Gaussians at a mean squared error (reverse water-filling)."""
    low, high = 0.0, float(variance_D.max())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(variance_D, middle).mean() < error else (low, middle)
    return float(np.maximum(0, 0.5 * np.log2(np.maximum(variance_D, 1e-30) / high)).mean())


def to_bytes(integers_NDM: Ints, groups: Sequence[int]) -> tuple[NDArray[np.uint8], list[int]]:
    """Packed bytes of every row, and where groups end, as ``klt`` lays them out."""
    pieces, cuts, start, size = [], [], 0, 0
    for group, count in zip(GROUPS, groups, strict=True):
        if count:
            some = integers_NDM[:, start : start + count].reshape(len(integers_NDM), -1)
            pieces.append(pack(np.clip(some, -group.largest, group.largest), group))
            start, size = start + count, size + packed_bytes(some.shape[1], group)
            cuts.append(size)
    return np.concatenate(pieces, axis=1), cuts[:-1]


def frame(data: bytes, cuts: Sequence[int], level: int = 3) -> bytes:
    """A zstd frame with a new block at every cut, as the store writes; level 0 looks for hardly any matches."""
    literal = {"strategy": zstandard.STRATEGY_FAST, "min_match": 7, "hash_log": 6, "chain_log": 6, "search_log": 1}
    made = zstandard.ZstdCompressor(level=level)  # which tunes itself to the size as well
    if not level:
        made = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters.from_level(1, **literal))
    stream = made.compressobj(size=len(data))
    blocks = []
    for start, stop in pairwise([0, *cuts, len(data)]):
        blocks.append(stream.compress(data[start:stop]))
        blocks.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) if stop < len(data) else stream.flush())
    return b"".join(blocks)


def finer(cuts: Sequence[int], size: int, block: int) -> list[int]:
    """Groups cut into equal pieces of about so many bytes: within a group, too, variances fall."""
    made = set(cuts)
    for start, stop in pairwise([0, *cuts, size]):
        pieces = max(1, round((stop - start) / block))
        made |= {start + (stop - start) * piece // pieces for piece in range(1, pieces)}
    return sorted(made)


def summary(coded: Sequence[Coded], *, side_bits: float = 0.0) -> Row:
    """Bits of coded levels, with ``side_bits`` a value on top."""
    rows, better = [], []
    for level in coded:
        packed_NK, cuts = to_bytes(level.integers, level.plan.groups)
        more = finer(cuts, packed_NK.shape[1], FINER)
        bits = [len(frame(row.tobytes(), cuts)) * 8 / level.decoded[0].size for row in packed_NK]
        rows.append(np.array(bits) + side_bits)
        better += [len(frame(row.tobytes(), more, 0)) * 8 / level.decoded[0].size + side_bits for row in packed_NK]
    entropy = [entropy_bits(level.integers, level.decoded[0].size) + side_bits for level in coded]
    bound = [level.bound + side_bits for level in coded]
    return Row([float(bits.mean()) for bits in rows], float(np.mean(better)), entropy, bound, np.mean(rows, axis=0))


def show(name: str, rows: Sequence[Row]) -> None:
    """One line: at each fidelity mean bits with standard error over rows, by level, finer cut, entropy, bound."""
    cells = [name]
    for row in rows:
        spread = row.rows_bits.std() / np.sqrt(len(row.rows_bits))
        cells += [f"{np.mean(row.bits):.3f} ± {spread:.3f}", " ".join(f"{bits:.2f}" for bits in row.bits)]
        cells += [f"{row.finer:.3f}", f"{np.mean(row.entropy):.3f}", f"{np.mean(row.bound):.3f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


# One level: fit, plan, code


def gram(one_NCHW: Floats, other_NCHW: Floats) -> NDArray[np.float64]:
    """Second moments of two maps' components over tokens."""
    total = np.zeros((one_NCHW.shape[1], other_NCHW.shape[1]))
    for one, other in zip(one_NCHW, other_NCHW, strict=True):
        total += one.reshape(len(one), -1) @ other.reshape(len(other), -1).T
    return total / (len(one_NCHW) * one_NCHW[0, 0].size)


def principal(rest_NCHW: Floats) -> Floats:
    """Karhunen-Loève basis ``(C, C)`` of maps of mean zero, by falling variance."""
    return np.ascontiguousarray(np.linalg.eigh(gram(rest_NCHW, rest_NCHW))[1][:, ::-1], dtype=np.float32)


def regress(parents_NPHW: Floats, values_NCHW: Floats, noise_P: Floats | float = 0.0) -> Floats:
    """Least-squares matrix ``(C, P)`` where the parents will carry noise of these variances."""
    known = gram(parents_NPHW, parents_NPHW)
    known += (noise_P + 1e-6 * np.trace(known) / len(known)) * np.eye(len(known))
    return np.linalg.solve(known, gram(parents_NPHW, values_NCHW)).T.astype(np.float32)


def patched(feat_NCHW: Floats, patch: int) -> Floats:
    """Square patches of tokens as single tokens: ``(N, C * patch * patch, H / patch, W / patch)``."""
    count, components, height, width = feat_NCHW.shape
    tiles = feat_NCHW.reshape(count, components, height // patch, patch, width // patch, patch)
    return tiles.transpose(0, 1, 3, 5, 2, 4).reshape(count, -1, height // patch, width // patch)


def unpatched(feat_NCHW: Floats, patch: int) -> Floats:
    """Inverse of ``patched``."""
    count, components, height, width = feat_NCHW.shape
    tiles = feat_NCHW.reshape(count, components // patch**2, patch, patch, height, width)
    return tiles.transpose(0, 1, 4, 2, 5, 3).reshape(count, -1, height * patch, width * patch)


def analysed(rest_NCHW: Floats, basis: Floats, blocks: Blocks) -> Floats:
    """Coefficients ``(N, D, M)``, few rows at a time to save memory."""
    pieces = [rest_NCHW[start : start + 16] for start in range(0, len(rest_NCHW), 16)]
    tiles = rest_NCHW[0, 0].size // (blocks.height * blocks.width)
    coefs = np.empty((len(rest_NCHW), rest_NCHW[0].size // tiles, tiles), dtype=np.float32)
    for place, piece in enumerate(pieces):
        coefs[16 * place : 16 * place + 16] = to_blocks(apply_matrix(basis.T, piece), blocks)
    return coefs


def make_level(
    pair: tuple[Floats, Floats], parents: tuple[Maps, Maps], idea: Idea, gain: Floats | None = None
) -> Level:
    """Fit the prediction from decoded parents (without any: the mean), the basis and the block transform."""
    axes = (0,) if idea.placed else (0, 2, 3)
    mean = pair[0].mean(axis=axes, keepdims=True)
    guesses = (mean, mean)
    if parents[0]:
        means = [known.mean(axis=axes, keepdims=True) for known in parents[0]]
        known = [np.concatenate([a - m for a, m in zip(some, means, strict=True)], axis=1) for some in parents]
        matrix = regress(known[0], pair[0] - mean)
        guesses = (apply_matrix(matrix, known[0]) + mean, apply_matrix(matrix, known[1]) + mean)
    blocks = block_sides(pair[0].shape[2], pair[0].shape[3], side=max(1, idea.side // idea.patch))
    rest = pair[0] - guesses[0]
    basis = principal(rest)
    fitted, held = (analysed(some, basis, blocks) for some in (rest, pair[1] - guesses[1]))
    variance = np.einsum("ndm,ndm->d", fitted, fitted) / (len(fitted) * fitted.shape[2])
    gain = np.ones((len(held), 1, 1, 1), dtype=np.float32) if gain is None else gain
    return Level(basis, blocks, guesses, (fitted, held), variance, pair[1] * gain, gain, idea.patch)


def bits_of(share_D: Floats, size_D: Floats) -> Floats:
    """Bits a value: is it zero, its sign, and a magnitude of geometric distribution of that mean."""
    share, stop = np.clip(share_D, 1e-9, 1 - 1e-9), 1 / np.maximum(size_D, 1 + 1e-6)
    whether = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    return whether + share * (1 + (-(1 - stop) * np.log2(1 - stop) - stop * np.log2(stop)) / stop)


def rounded(scaled: Floats, zero_below: Floats | float, up_at: float) -> Floats:
    """Whole magnitudes of magnitudes in steps."""
    return np.floor(scaled + np.float32(1 - up_at)) * (scaled >= zero_below)


def make_plan(coefs_NDM: Floats, step: float, zone: Zone, *, keep: bool = False) -> Plan:
    """Which coefficients are worth their bits, how wide they are and how they round, as ``klt_fit`` decides it."""
    rows = max(48, 432 // coefs_NDM.shape[2])  # as many samples a coefficient for every block side
    scaled = np.abs(coefs_NDM[:rows]) * np.float32(1 / step)
    count = scaled.shape[0] * scaled.shape[2]
    power = np.einsum("ndm,ndm->d", scaled, scaled)
    zero_below = np.full(len(power), zone.at, dtype=np.float32)
    for _ in range(1 + zone.own):
        whole = rounded(scaled, zero_below[:, None], zone.at)
        used = np.count_nonzero(whole, axis=(0, 2))
        size = whole.sum(axis=(0, 2)) / np.maximum(used, 1)
        if zone.own:  # 1 costs log2(P(0) / P(1)) bits more than 0, and a bit is worth ln(2) / 6 squared steps
            share = np.clip(used / count, 1e-4, 1 - 1e-4)
            dearer = np.log2((1 - share) / (share / np.maximum(size, 1) / 2))
            zero_below = np.maximum(zone.at, 0.5 + np.log(2) / 12 * dearer).astype(np.float32)
    rest = scaled - whole
    error = np.einsum("ndm,ndm->d", rest, rest)
    kept = (used > 0) if keep else power - error > np.log(2) / 6 * count * bits_of(used / count, size)
    fits = [np.ones(len(power), dtype=bool)]
    for group in GROUPS[1:]:
        cut = scaled - np.minimum(whole, group.largest)
        fits.append(np.einsum("ndm,ndm->d", cut, cut) - error <= 0.02 / 12 * count)
    group_of = len(GROUPS) - 1 - np.argmax(np.array(fits)[::-1], axis=0)
    kept[np.argmax(power)] = True
    order = np.lexsort((-power, group_of))
    order = order[kept[order]]
    lean, nearer = -(rest * (whole > 0)).sum(axis=(0, 2)), np.zeros(len(power), dtype=np.float32)
    for place in range(len(GROUPS)) if zone.nearer else ():
        members = order[group_of[order] == place]
        nearer[members] = lean[members].sum() / max(used[members].sum(), 1)
    groups = np.bincount(group_of[order], minlength=len(GROUPS)).tolist()
    return Plan(step, order, groups, nearer[order], zero_below[order], zone.at)


def encode(coefs_NDM: Floats, plan: Plan) -> Ints:
    """Integers of the kept coefficients, clipped to their groups."""
    some = coefs_NDM[:, plan.order]
    whole = rounded(np.abs(some) * np.float32(1 / plan.step), plan.zero_below[:, None], plan.up_at)
    largest = np.repeat([group.largest for group in GROUPS], plan.groups)[:, None]
    return (np.sign(some) * np.minimum(whole, largest)).astype(np.int32)


def decode(integers_NDM: Ints, plan: Plan, level: Level) -> Floats:
    """Map that integers stand for, without the prediction."""
    full = np.zeros((len(integers_NDM), *level.coefs[0].shape[1:]), dtype=np.float32)
    full[:, plan.order] = (integers_NDM - np.sign(integers_NDM) * plan.nearer[:, None]) * np.float32(plan.step)
    return apply_matrix(level.basis, from_blocks(full, level.blocks, level.truth.shape[2:]))


def code(level: Level, step: float, zone: Zone) -> Coded:
    """Held-out rows at one step."""
    plan = make_plan(level.coefs[0], step, zone)
    integers = encode(level.coefs[1], plan)
    decoded = (decode(integers, plan, level) + level.guesses[1]) * level.gain
    wrong = float(np.mean(((level.truth - decoded) / level.gain) ** 2))
    cosine = cosine_of(unpatched(level.truth, level.patch), unpatched(decoded, level.patch))
    error = error_of(level.truth, decoded)
    return Coded(plan, integers, decoded, cosine, error, gaussian_bound(level.variance, wrong))


def searched(run: Callable[[float], Coded], target: Target, step: float) -> Coded:
    """What a run gives at the step that meets the target to 0.3 % of its error energy."""
    before = None
    for _ in range(7):
        coded = run(step)
        miss = target.miss(coded.cosine, coded.error)
        if abs(miss) < 0.003:
            break
        slope = 1.5  # error energy grows about so with the step, in logarithms
        if before:
            slope = float(np.clip((miss - before[1]) / (np.log(step) - np.log(before[0])), 0.5, 3))
        before, step = (step, miss), step * float(np.exp(np.clip(-miss / slope, -1, 1)))
    return coded


def first_step(truth: Floats, target: Target) -> float:
    """A guess where nothing is known."""
    share = 2 * (1 - target.value) if target.cosine else 1.8 * target.value**2
    return float(np.sqrt(12 * share * np.mean(truth**2)))


# Transforms


SHIPPED = Idea("+ chain bottom-up (what klt does)", parents=1)
IDEAS = (
    Idea("KLT of tokens", side=1),
    Idea("+ DCT of 4x4 blocks", side=4),
    Idea("+ DCT of 8x8 blocks"),
    Idea("+ DCT of 12x12 blocks", side=12),
    Idea("+ DCT of the whole grid", side=64),
    SHIPPED,
    Idea("KLT, chain bottom-up, no blocks", side=1, parents=1),
    Idea("klt, chain top-down", parents=1, down=True),
    Idea("klt, predicted from all levels before", parents=99),
    Idea("klt, tokens divided by their norms", parents=1, normed=True),
    Idea("klt, zero as wide as pays for each coefficient", parents=1, zone=Zone(0.55, own=True)),
    Idea("klt, a mean for every position", parents=1, placed=True),
    Idea("klt, a mean for every position, bases of 2x2 tokens", parents=1, placed=True, patch=2),
)

JOINT = (
    Idea("one basis of all levels, 8x8 DCT"),
    Idea("one basis of all levels, 8x8 DCT, a mean for every position", placed=True),
)


def code_idea(maps: tuple[Maps, Maps], idea: Idea, target: Target, steps: Steps) -> tuple[Row, list[Coded]]:
    """Code all levels, each at the target and predicted from maps as a reader has them."""
    done: dict[int, Coded] = {}
    known: tuple[Maps, Maps] = ([], [])
    order = list(range(len(maps[0])))
    for index in order[::-1] if idea.down else order:
        norms = [np.linalg.norm(some[index], axis=1, keepdims=True) if idea.normed else None for some in maps]
        pair = [some[index] if norm is None else some[index] / norm for some, norm in zip(maps, norms, strict=True)]
        pair = [patched(some, idea.patch) for some in pair]
        parents = ([], []) if not idea.parents else (known[0][-idea.parents :], known[1][-idea.parents :])
        level = make_level((pair[0], pair[1]), parents, idea, norms[1])
        start = steps.get((index, target, idea.normed)) or first_step(pair[1], target)
        done[index] = coded = searched(lambda step: code(level, step, idea.zone), target, start)  # noqa: B023
        steps[index, target, idea.normed] = coded.plan.step
        if idea.parents and len(done) < len(order):
            known[0].append(decode(encode(level.coefs[0], coded.plan), coded.plan, level) + level.guesses[0])
            known[1].append(coded.decoded / level.gain)
    coded_levels = [done[index] for index in order]
    return summary(coded_levels, side_bits=8 / maps[0][0].shape[1] if idea.normed else 0.0), coded_levels


def code_neighbours(pair: tuple[Floats, Floats], parents: tuple[Maps, Maps], step: float) -> tuple[Coded, Floats]:
    """Predict every token from its decoded left and upper neighbours and its parent, one token after the other."""
    count, mean = len(pair[0]), pair[0].mean(axis=(0, 2, 3), keepdims=True)
    values = np.concatenate(pair) - mean
    padded = np.pad(values, ((0, 0), (0, 0), (1, 0), (1, 0)))
    contexts = [padded[:, :, 1:, :-1], padded[:, :, :-1, 1:]]
    above = np.concatenate([parents[0][-1], parents[1][-1]]) if parents[0] else values[:, :0]
    above = above - above[:count].mean(axis=(0, 2, 3), keepdims=True)
    context = np.ascontiguousarray(np.concatenate([*contexts, above], axis=1)[:count])
    noise_P = np.where(np.arange(context.shape[1]) < 2 * len(mean[0]), step**2 / 12, 0)
    matrix = regress(context, values[:count], noise_P)
    basis = principal(values[:count] - apply_matrix(matrix, context))
    values, above = (np.ascontiguousarray(some.transpose(2, 3, 0, 1)) for some in (values, above))  # (H, W, N, C)
    decoded, coefs = np.zeros((values.shape[0] + 1, values.shape[1] + 1, *values.shape[2:]), np.float32), values.copy()
    for y, x in np.ndindex(values.shape[:2]):
        guess = np.concatenate([decoded[y + 1, x], decoded[y, x + 1], above[y, x]], axis=1) @ matrix.T
        coefs[y, x] = some = (values[y, x] - guess) @ basis
        whole = np.sign(some) * rounded(np.abs(some) / np.float32(step), 0, Zone().at) * np.float32(step)
        decoded[y + 1, x + 1] = guess + whole @ basis.T
    maps = np.ascontiguousarray(decoded[1:, 1:].transpose(2, 3, 0, 1)) + mean
    coefs = np.ascontiguousarray(coefs.reshape(-1, *values.shape[2:]).transpose(1, 2, 0))
    plan = make_plan(coefs[:count], step, Zone(nearer=False), keep=True)
    cosine, error = cosine_of(pair[1], maps[count:]), error_of(pair[1], maps[count:])
    variance, wrong = (coefs[:count] ** 2).mean(axis=(0, 2)), float(np.mean((maps[count:] - pair[1]) ** 2))
    bound = gaussian_bound(variance, wrong)
    return Coded(plan, encode(coefs[count:], plan), maps[count:], cosine, error, bound), maps[:count]


def neighbour_idea(maps: tuple[Maps, Maps], target: Target, steps: Steps, *, chain: bool) -> Row:
    """All levels by ``code_neighbours``, fitted to half of the rows."""
    done: list[Coded] = []
    known: tuple[Maps, Maps] = ([], [])
    for index, pair in enumerate(zip([fit[: len(fit) // 2] for fit in maps[0]], maps[1], strict=True)):
        parents = known if chain else ([], [])
        kept: Maps = []

        def run(step: float) -> Coded:
            coded, fitted = code_neighbours(pair, parents, step)  # noqa: B023
            kept[:] = [fitted]  # noqa: B023
            return coded

        done.append(searched(run, target, steps[index, target, False]))
        known[0].append(kept[0])
        known[1].append(done[-1].decoded)
    return summary(done)


def joint_idea(maps: tuple[Maps, Maps], target: Target, steps: Steps, idea: Idea) -> Row:
    """One basis of the components of all levels together; scales before it set the fidelity of each level."""
    scales = [np.float32(1 / steps[index, target, False]) for index in range(len(maps[0]))]
    ends = np.cumsum([fit.shape[1] for fit in maps[0]])[:-1]
    for _ in range(4):
        one, other = (np.concatenate([a * by for a, by in zip(some, scales, strict=True)], axis=1) for some in maps)
        level = make_level((one, other), ([], []), idea)
        del one
        whole = code(level, 1.0, idea.zone)
        del level, other
        split = [some / by for some, by in zip(np.split(whole.decoded, ends, axis=1), scales, strict=True)]
        misses = [target.miss(cosine_of(a, b), error_of(a, b)) for a, b in zip(maps[1], split, strict=True)]
        if max(np.abs(misses)) < 0.005:
            break
        scales = [by * np.float32(np.exp(miss / 1.6)) for by, miss in zip(scales, misses, strict=True)]
    return summary([whole])


def transforms(maps: tuple[Maps, Maps]) -> list[Coded]:
    """Bits of every transform; returns what klt's makes at the cosine."""
    print("| transform | bits at cosine 0.988 | by level | finer | entropy | bound | bits at error 0.3 | ...")
    steps: Steps = {}
    shipped: list[Coded] = []
    for idea in IDEAS:
        results = [code_idea(maps, idea, target, steps) for target in TARGETS]
        shipped = results[0][1] if idea is SHIPPED else shipped
        show(idea.name, [row for row, _ in results])
    for idea in JOINT:
        show(idea.name, [joint_idea(maps, target, steps, idea) for target in TARGETS])
    for name, chain in (("KLT, left and upper neighbour", False), ("KLT, left, upper and level below", True)):
        show(name, [neighbour_idea(maps, target, steps, chain=chain) for target in TARGETS])
    return shipped


# Byte codecs


def timed(decode_all: Callable[[], object], integers: int) -> float:
    """Integers a second in billions, best of five rounds: other jobs only slow it down."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        decode_all()
        seconds.append(time.perf_counter() - start)
    return integers / min(seconds) / 1e9


def layouts(coded: Sequence[Coded]) -> dict[str, list[tuple[bytes, list[int]]]]:
    """Bytes and cuts of every row and level: one integer a byte, or packed."""
    made: dict[str, list[tuple[bytes, list[int]]]] = {"a byte each": [], "packed": []}
    for level in coded:
        first, *rest = level.plan.groups
        for name, groups in (("a byte each", [first, sum(rest), 0, 0, 0]), ("packed", level.plan.groups)):
            packed_NK, cuts = to_bytes(level.integers, groups)
            if name != "packed":  # the same cuts, where a byte holds one integer
                ends = np.cumsum([2 * first, *rest]) * level.integers.shape[2]
                cuts = sorted({int(end) for end in ends} - {0, packed_NK.shape[1]})
            made[name] += [(row.tobytes(), cuts) for row in packed_NK]
    return made


def coders(coded: Sequence[Coded]) -> None:
    """Bits and decoding speed of byte codecs on the integers of klt."""
    values = sum(level.decoded.size for level in coded)
    integers = sum(level.integers.size for level in coded)
    print(f"\n| byte codec | layout | bits a value | G integers/s | ({integers / values:.3f} integers a value)")

    def line(name: str, layout: str, blobs: Sequence[bytes], decode_one: Callable[[bytes], object]) -> None:
        speed = timed(lambda: [decode_one(blob) for blob in blobs], integers)
        print(f"| {name} | {layout} | {sum(map(len, blobs)) * 8 / values:.3f} | {speed:.2f} |", flush=True)

    made = layouts(coded)
    for layout, rows in made.items():
        for level in (1, 3, 9, 19):
            line(f"zstd {level}", layout, [frame(data, [], level) for data, _ in rows], zstd.decompress)
        for level in (3, 1, 0, 9):
            name = f"zstd {level or 'without matches'}, block a group"
            line(name, layout, [frame(*row, level) for row in rows], zstd.decompress)
            for block in (24576, 12288, 8192, 4096) if layout == "packed" and level < 9 else ():
                blobs = [frame(data, finer(cuts, len(data), block), level) for data, cuts in rows]
                line(f"{name}, cut at {block} bytes", layout, blobs, zstd.decompress)
        for name in ("lz4", "zstd"):
            blosc = Blosc(cname=name, clevel=5, shuffle=Blosc.BITSHUFFLE)
            line(f"blosc bitshuffle {name}", layout, [blosc.encode(data) for data, _ in rows], blosc.decode)
    flat = [row.astype(np.int16).ravel() for level in coded for row in level.integers]
    bytewise = [np.clip(row, -128, 127).astype(np.int8) for row in flat]
    for name, config, some in (("int16", ChunkConfig(), flat), ("int8", ChunkConfig(enable_8_bit=True), bytewise)):
        blobs = [bytes(standalone.simple_compress(row, config)) for row in some]
        line("pcodec 8", name, blobs, standalone.simple_decompress)
    range_coding(coded, values, integers)
    entropy = sum(entropy_bits(level.integers, level.decoded[0].size) for level in coded) / len(coded)
    print(f"| empirical entropy, {CLASSES} tables a level | | {entropy:.3f} | |")
    contexts(coded)


def range_coding(coded: Sequence[Coded], values: int, integers: int) -> None:
    """ANS with one static table a class, and how fast it decodes where every integer has its own model."""
    words, jobs = 0, []
    for level in coded:
        for members in np.array_split(np.arange(level.integers.shape[1]), CLASSES):
            some = level.integers[:, members].ravel()
            shares = np.bincount(some - some.min(), minlength=2).astype(np.float32)
            model = constriction.stream.model.Categorical(shares / shares.sum(), perfect=False)
            coder = constriction.stream.stack.AnsCoder()
            coder.encode_reverse((some - some.min()).astype(np.int32), model)
            words += coder.num_words()
            jobs.append((coder.get_compressed(), model, some.size))
    decoder = constriction.stream.stack.AnsCoder
    speed = timed(lambda: [decoder(data).decode(model, size) for data, model, size in jobs], integers)
    print(f"| constriction ANS, {CLASSES} static tables a level | | {words * 32 / values:.3f} | {speed:.3f} |")
    some = np.clip(coded[-1].integers[0].ravel(), -127, 127)
    family = constriction.stream.model.QuantizedLaplace(-127, 127)
    coder, scales = decoder(), np.full(some.shape, 1.0)
    coder.encode_reverse(some, family, np.zeros(some.shape), scales)
    data = coder.get_compressed()
    speed = timed(lambda: decoder(data).decode(family, np.zeros(some.shape), scales), some.size)
    print(f"| constriction ANS, a Laplace model for each integer | | | {speed:.3f} |")


def contexts(coded: Sequence[Coded]) -> None:
    """What earlier components tell of a magnitude: cross-entropy of a quarter of the rows, tables of the others."""
    totals = np.zeros(2)
    for level in coded:
        side = block_sides(*level.decoded.shape[2:], side=SHIPPED.side)
        rows, kept, tiles = level.integers.shape
        shape = (level.decoded.shape[1], side.height * side.width, tiles)
        full = np.zeros((rows, shape[0] * shape[1], tiles), dtype=np.float32)
        full[:, level.plan.order] = np.abs(level.integers)
        known = 3 * rows // 4
        mean = full[:known].mean(axis=(0, 2))[:, None]
        # Magnitudes against their means, over all components before, of the same frequency of the same block.
        spread = np.cumsum((full / (mean + 0.3)).reshape(rows, *shape), axis=1)
        usual = np.cumsum((mean / (mean + 0.3)).reshape(1, *shape[:2], 1), axis=1)
        ratio = np.ones_like(spread)
        ratio[:, 1:] = (spread[:, :-1] + 1) / (usual[:, :-1] + 1)
        ratio = ratio.reshape(full.shape)[:, level.plan.order]
        bins = np.digitize(ratio, np.quantile(ratio[:known], np.linspace(0, 1, 9)[1:-1]))
        static, classes = (np.arange(kept)[:, None] * count // kept for count in (256, 32))
        symbols = np.clip(level.integers, -127, 127) + 127
        for place, table in enumerate((np.broadcast_to(static, symbols.shape), classes * 8 + bins)):
            cells = (table * 255 + symbols).reshape(rows, -1)
            counts = np.bincount(cells[:known].ravel(), minlength=256 * 255).reshape(-1, 255) + 0.01
            spent = -np.log2(counts / counts.sum(axis=1, keepdims=True)).ravel()[cells[known:]].sum()
            totals[place] += spent / (rows - known) / level.decoded[0].size / len(coded)
    print(f"| cross-entropy, 256 static tables a level | | {totals[0]:.3f} | |")
    print(f"| cross-entropy, 32 x 8 tables by the components before | | {totals[1]:.3f} | |", flush=True)


# Fixed rates: vectors, low bits, fewer tokens


def tokens(feat_NCHW: Floats, every: int = 1) -> Floats:
    """``(T, C)``."""
    return np.ascontiguousarray(feat_NCHW.transpose(0, 2, 3, 1)).reshape(-1, feat_NCHW.shape[1])[::every]


def cosine_tokens(truth_TC: Floats, decoded_TC: Floats) -> float:
    """Mean cosine."""
    return cosine_of(truth_TC[:, :, None, None], decoded_TC[:, :, None, None])


def nearest(points_TC: Floats, codes_KC: Floats) -> NDArray[np.int64]:
    """Index of the nearest code of each point."""
    return np.argmax(points_TC @ codes_KC.T - (codes_KC**2).sum(axis=1) / 2, axis=1)


def kmeans(points_TC: Floats, count: int, rounds: int = 8) -> Floats:
    """Codes ``(count, C)``."""
    codes = points_TC[np.random.default_rng(0).choice(len(points_TC), count, replace=False)].copy()
    for _ in range(rounds):
        index = nearest(points_TC, codes)
        order = np.argsort(index, kind="stable")
        present, starts = np.unique(index[order], return_index=True)
        sums = np.add.reduceat(points_TC[order], starts, axis=0)
        codes[present] = sums / np.diff([*starts, len(order)])[:, None]
    return codes


def residual_vq(fit_TC: Floats, held_TC: Floats, *, dims: int, codes: int, stages: int) -> list[Floats]:
    """Held-out tokens after each stage of product quantisation by ``dims`` components."""
    left, decoded, results = fit_TC.copy(), np.zeros_like(held_TC), []
    for _ in range(stages):
        for start in range(0, fit_TC.shape[1], dims):
            some = slice(start, start + dims)
            book = kmeans(left[:, some], codes)
            left[:, some] -= book[nearest(left[:, some], book)]
            decoded[:, some] += book[nearest(held_TC[:, some] - decoded[:, some], book)]
        results.append(decoded.copy())
    return results


def vectors(maps: tuple[Maps, Maps]) -> None:
    """Cosine of product and residual vector quantisation, stage by stage, and the rate for 0.988."""
    print("\n| vectors | bits: cosine, mean of levels, after each stage | bits at 0.988 |")
    for name, dims, codes, stages, dealt in (
        ("256 codes of 8 components", 8, 256, 3, False),
        ("256 codes of 8 KLT components, dealt", 8, 256, 3, True),
        ("1024 codes of whole tokens", 384, 1024, 5, False),
    ):
        cosines, needed = [], []
        rate = np.log2(codes) / min(dims, maps[0][0].shape[1])
        for fit, held in zip(*maps, strict=True):
            mean, basis = fit.mean(axis=(0, 2, 3), keepdims=True), np.eye(fit.shape[1], dtype=np.float32)
            basis = principal(fit - mean)[:, deal(fit.shape[1], dims)] if dealt else basis
            some, truth = tokens(fit - mean, every=11) @ basis, tokens(held - mean, every=5)
            stage = residual_vq(some, truth @ basis, dims=min(dims, fit.shape[1]), codes=codes, stages=stages)
            back = [cosine_tokens(truth + mean[0, :, 0, 0], one @ basis.T + mean[0, :, 0, 0]) for one in stage]
            cosines.append(back)
            logs = np.log(1 - np.array(back))  # the last stages' slope, extended where they do not reach it
            needed.append(rate * (stages + (np.log(1 - COSINE) - logs[-1]) / (logs[-1] - logs[-2])))
            if logs[-1] < np.log(1 - COSINE):
                needed[-1] = rate * float(np.interp(-np.log(1 - COSINE), -logs, np.arange(1, stages + 1)))
        steps = ", ".join(f"{rate * (n + 1):.2f}: {cosine:.4f}" for n, cosine in enumerate(np.mean(cosines, axis=0)))
        print(f"| {name} | {steps} | {np.mean(needed):.2f} |", flush=True)


def deal(components: int, block: int) -> NDArray[np.int64]:
    """An order that gives every block of components its share of the wide and of the narrow ones."""
    return np.arange(components).reshape(block, -1).T.ravel()


def low_bits(maps: tuple[Maps, Maps]) -> None:
    """Cosine of integers with a scale for each token or group, under three rotations."""
    print("\n| levels of an integer | rotation | components a scale | bits before zstd | bits after zstd 3 | cosine |")
    for largest in (7, 3, 1):
        for rotation in ("none", "Hadamard", "PHI-S"):
            for group in (0, 64, 32):
                results = [low_bits_level(*pair, largest, rotation, group) for pair in zip(*maps, strict=True)]
                plain, small, cosine = (f"{value:.4g}" for value in np.mean(results, axis=0))
                print(f"| {2 * largest + 1} | {rotation} | {group or 'all'} | {plain} | {small} | {cosine} |")


def low_bits_level(fit: Floats, held: Floats, largest: int, rotation: str, group: int) -> tuple[float, float, float]:
    """Bits a value before and after zstd, and cosine."""
    few, components = held[:16], held.shape[1]
    turned = few
    if rotation == "PHI-S":
        mean = fit.mean(axis=(0, 2, 3), keepdims=True)
        basis = principal(fit - mean)[:, deal(components, 128)]
        turned = apply_matrix(np.ascontiguousarray(basis.T), few - mean)
    turned = rotate(turned) if rotation != "none" else turned
    grouped = turned.reshape(len(few), components // (group or components), -1, *few.shape[2:])
    scale = (np.abs(grouped).max(axis=2, keepdims=True) / largest).astype(np.float16).astype(np.float32)
    integers = np.round(grouped / np.maximum(scale, 1e-9))
    back = (integers * scale).reshape(few.shape)
    back = unrotate(back) if rotation != "none" else back
    back = apply_matrix(basis, back) + mean if rotation == "PHI-S" else back
    scales = 16 / (group or components)
    place = {7: 2, 3: 1, 1: 4}[largest]
    packed_NK = pack(integers.reshape(len(few), -1).astype(np.int32), GROUPS[place])
    stored = np.mean([len(frame(row.tobytes(), [])) for row in packed_NK]) * 8 / few[0].size
    return {7: 4.0, 3: 3.0, 1: 1.6}[largest] + scales, stored + scales, cosine_of(few, back)


def fewer_tokens(maps: tuple[Maps, Maps]) -> None:
    """Cosine and error when a quarter of the tokens is kept exactly and the rest interpolated."""
    print("\n| tokens kept | cosine by level | error by level |")
    for name, offset in (("every second", 0.0), ("means of 2x2", 0.5)):
        results = []
        for held in maps[1]:
            size, pairs = held.shape[2], held.reshape(*held.shape[:2], held.shape[2] // 2, 2, -1, 2)
            small = pairs.mean(axis=(3, 5)) if offset else pairs[:, :, :, 0, :, 0]
            where = np.clip((np.arange(size) - offset) / 2, 0, size // 2 - 1)
            weights = np.maximum(0, 1 - np.abs(where[:, None] - np.arange(size // 2))).astype(np.float32)
            back = weights @ small @ weights.T
            results.append((cosine_of(held, back), error_of(held, back)))
        cosines, errors = ([f"{value:.3f}" for value in some] for some in zip(*results, strict=True))
        print(f"| {name} | {' '.join(cosines)} | {' '.join(errors)} |", flush=True)


# Rounding, calibration


def zones(maps: tuple[Maps, Maps]) -> None:
    """Bits of ways to round, for the first and the third level without a chain."""
    print("\n| zero | read back | bits at cosine 0.988 | bits at error 0.3 | (levels 0 and 2, 8x8 DCT, no chain)")
    levels = [make_level((maps[0][k], maps[1][k]), ([], []), Idea("")) for k in (0, 2)]
    steps: dict[tuple[int, Target], float] = {}
    for zone in [Zone(at, nearer=nearer) for at in (0.5, 0.55, 0.6, 0.65, 0.7) for nearer in (False, True)] + [
        Zone(at, own=True) for at in (0.5, 0.55, 0.6)
    ]:
        cells = []
        for target in TARGETS:
            done = []
            for place, level in enumerate(levels):
                start = steps.get((place, target)) or first_step(level.truth, target)
                done.append(searched(lambda step: code(level, step, zone), target, start))  # noqa: B023
                steps[place, target] = done[-1].plan.step
            row = summary(done)
            cells.append(f"{np.mean(row.bits):.3f}, finer {row.finer:.3f}, entropy {np.mean(row.entropy):.3f}")
        name = f"{zone.at}{' or as wide as pays' * zone.own}"
        print(f"| {name} | {'nearer to zero' if zone.nearer else 'multiples'} | {' | '.join(cells)} |", flush=True)


def calibration(maps: tuple[Maps, Maps], plans: Sequence[tuple[int, float]]) -> None:
    """The codec itself, fitted to so many rows for an asked error, on the held-out rows."""
    print("\n| rows | asked error | bits | finer, no matches | by level | cosine by level | error by level | fit s |")
    specs = [LevelSpec(components=fit.shape[1], height=fit.shape[2], width=fit.shape[3]) for fit in maps[0]]
    for rows, error in plans:
        start = time.process_time()
        fitter = make_fitter({"name": "klt", "error": error, "rows": rows}, specs)
        for _ in range(fitter.passes):
            for first in range(0, rows, 16):
                fitter.add([fit[first : min(first + 16, rows)] for fit in maps[0]])
            fitter.end_pass()
        codec, seconds = fitter.codec(), time.process_time() - start
        encoded = codec.encode_levels(maps[1])
        decoded = codec.decode_levels(dict(enumerate(encoded)), levels=range(len(specs)))
        bits, better = [], []
        for index, (spec, parts) in enumerate(zip(specs, encoded, strict=True)):
            cuts, data = codec.parts(spec, index=index)["values"].cuts, [row.tobytes() for row in parts["values"]]
            more = finer(cuts, len(data[0]), FINER)
            bits.append(np.mean([len(frame(row, cuts)) for row in data]) * 8 / spec.values)
            better.append(np.mean([len(frame(row, more, 0)) for row in data]) * 8 / spec.values)
        pairs = list(zip(maps[1], decoded, strict=True))
        measures = bits, [cosine_of(*pair) for pair in pairs], [error_of(*pair) for pair in pairs]
        line = " | ".join(" ".join(f"{value:.4f}" for value in some) for some in measures)
        means = f"{np.mean(bits):.3f} | {np.mean(better):.3f}"
        print(f"| {rows} | {error} | {means} | {line} | {seconds:.0f} |", flush=True)


def main() -> None:
    """Read the column, then one table after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("column", metavar="VIEW_SET/COLUMN")
    parser.add_argument("--rows", type=int, default=192, help="rows to fit to, from the first")
    parser.add_argument("--held-out", type=int, default=48, help="rows to measure on, from the last")
    parser.add_argument("--only", nargs="*", default=["codec", "transforms", "rounding", "fixed"], help="tables")
    asked = parser.parse_args()
    opened = store.open(asked.store)
    view_set, name = asked.column.split("/")
    usable = opened.view_set(view_set).usable_rows()
    if len(usable) < asked.rows + asked.held_out:
        parser.error(f"expected {asked.rows + asked.held_out} rows, the column has {len(usable)}")
    fitted = usable[: min(4 * asked.rows // 3, len(usable) - asked.held_out)]
    parts = [opened.read(view_set, columns=[name], rows=some)[name] for some in (fitted, usable[-asked.held_out :])]
    maps = ([fit[: asked.rows] for fit in parts[0]], parts[1])
    if "codec" in asked.only:
        plans = [(asked.rows, error) for error in (0.148, 0.146, 0.145, 0.3)]
        rows = [count for count in (16, 32, 64, 128, 256) if count != asked.rows and count <= len(fitted)]
        calibration((parts[0], parts[1]), plans + [(count, 0.148) for count in rows])
    if "transforms" in asked.only:
        coders(transforms(maps))
    if "rounding" in asked.only:
        zones(maps)
    if "fixed" in asked.only:
        vectors(maps)
        low_bits(maps)
        fewer_tokens(maps)


if __name__ == "__main__":
    main()
