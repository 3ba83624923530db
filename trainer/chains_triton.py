"""Triton kernels for what stands between a convolution and its reader: ReLU, both normalisers, max pool.

in       x       float32, bfloat16 or float16, (N, C, H, W), channels_last: in memory pixel after pixel, within a
                 pixel tower after tower
out      y       like x; pooled: (N, C, H//2, W//2), as 3 × 3, stride 2, ceil mode give for every side from 2 on
         where   uint8, shape of y: the maximum's place 0..8 in its window, row by row; 255 where a ReLU after made
                 y zero. The backward pass reads x and `where` and nothing else
source   fidelity.md §2; formulas and gradients as in lrn.py, all arithmetic in fp32

**Words.** A lane holds a word: eight neighbouring maps of one pixel, 16 bytes in the narrow types. The words of a
pixel's tower lie side by side in one warp (48 maps: six words, so five pixels in 30 of 32 lanes). A window across
maps is then sums within the lane and n // 2 values from the lane on either side, by shuffle: no denominator is
computed twice, nothing goes through shared memory, and any width fills at least 24 of 32 lanes.

**Pool.** A lane walks down one column of windows and keeps the maximum of the row that two windows share: 6
normalised pixels per window, not 9. Backward, a lane has a quad, the 2 × 2 pixels below the same four windows, and
adds what `where` sends to each: no atomics, so equal inputs give equal bits.

**Same map.** The four windows around a quad lie in one block of (n + 1)² pixels, and are summed along rows, then
along columns. The gradient needs the denominators of the neighbours; a kernel of its own writes g·v/d for it.

Nothing is tuned at run time. Kernels are compiled once for a layer's shape, whatever the batch.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from .chains import Chain

WORD = 8  # maps of a lane, and 8 in the kernels, where numbers stand for themselves
WARPS = 4  # of a program, and 4 in the kernels; they share nothing, so this only sets how evenly a card is filled
WINDOWS = 7  # a lane pools at most so many: one row in 15 is read twice, and there are lanes enough for the card
MAX_N = 2 * WORD + 1  # a window reaches no further than the next word
MAX_SAME_N = 9  # the block around a quad is written out pixel by pixel


def takes(maps: int, chain: Chain) -> bool:
    """Whether there are kernels for the chain of a tensor of so many maps."""
    own = maps // chain.towers
    return own * chain.towers == maps and own % WORD == 0 and chain.n <= MAX_N and chain.same_n <= MAX_SAME_N


def forward(x: Tensor, chain: Chain) -> tuple[Tensor, Tensor]:
    """y and `where`, which is empty when nothing is pooled and no ReLU comes after.

    Raises:
        ValueError: a tower's maps are not a multiple of 8, a window is wider than MAX_N or MAX_SAME_N, or a pool
            has nothing left.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    if chain.same_n:
        below, above = _around_same_map(chain)
        u = _across(x, below)[0] if below else x
        v = torch.empty_like(u)
        _launch(_same_map_kernel, _quads(x, chain), chain, x.shape, u, v)
        return _across(v, above) if above else (v, v.new_empty(0, dtype=torch.uint8))
    return _across(x, chain)


def backward(g: Tensor, x: Tensor, where: Tensor, chain: Chain) -> Tensor:
    """dL/dx of g = dL/dy."""
    x, g = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, g))
    dx = torch.empty_like(x)
    if not chain.same_n:
        _launch(_gradient_kernel, _quads(x, chain), chain, x.shape, x, g, where, x, dx, THROUGH=False)
        return dx
    below, _ = _around_same_map(chain)
    u = _across(x, below)[0] if below else x
    direct = torch.empty_like(x)  # g·d^-beta
    # g·v/d; bfloat16 also for float16, whose range a product of a scaled gradient could leave.
    through = torch.empty_like(x, dtype=torch.bfloat16 if x.element_size() == 2 else x.dtype)
    _launch(_same_map_gradient_kernel, _quads(x, chain), chain, x.shape, u, g, where, direct, through)
    unpooled = dataclasses.replace(chain, pool=False, relu="before" if chain.relu == "before" else None)
    _launch(_gradient_kernel, _quads(x, chain), unpooled, x.shape, x, direct, where, through, dx, THROUGH=True)
    return dx


def _around_same_map(chain: Chain) -> tuple[Chain | None, Chain | None]:
    """What is done below the same-map normaliser, and what above it; None: nothing."""
    before, after = (chain.relu if chain.relu == side else None for side in ("before", "after"))
    below = dataclasses.replace(chain, same_n=0, pool=False, relu=before)
    above = dataclasses.replace(chain, same_n=0, n=0, relu=after)
    return below if below.n or before else None, above if above.pool or after else None


def _across(x: Tensor, chain: Chain) -> tuple[Tensor, Tensor]:
    """A chain without the same-map normaliser."""
    N, C, H, W = x.shape
    if not chain.pool:
        y = torch.empty_like(x)
        where = torch.empty_like(y if chain.relu == "after" else y[:0], dtype=torch.uint8)
        _launch(_plain_kernel, N * H * W * chain.towers, chain, x.shape, x, y, where)
        return y, where
    if min(H, W) < 2:
        raise ValueError(f"maps of {H} × {W} pixels leave nothing to pool")
    y = torch.empty(N, C, H // 2, W // 2, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    where = torch.empty_like(y, dtype=torch.uint8)
    strips = triton.cdiv(H // 2, WINDOWS)
    rows = triton.cdiv(H // 2, strips)
    _launch(_pool_kernel, N * strips * (W // 2) * chain.towers, chain, x.shape, x, y, where, ROWS=rows)
    return y, where


def _quads(x: Tensor, chain: Chain) -> int:
    N, _, H, W = x.shape
    return N * ((H + 1) // 2) * ((W + 1) // 2) * chain.towers


def _launch(kernel: Any, units: int, chain: Chain, shape: torch.Size, *tensors: Tensor, **more: int) -> None:
    """Run a kernel on so many units, each one tower's maps of a pixel, a quad or a strip of windows."""
    _, C, H, W = shape
    maps = C // chain.towers
    if not takes(C, chain):
        raise ValueError(
            f"{chain.towers} towers in {C} maps, windows of {chain.n} maps and {chain.same_n} pixels: the kernels "
            f"take towers of whole eights, {MAX_N} maps and {MAX_SAME_N} pixels"
        )
    words = maps // WORD
    lanes = max(32, triton.next_power_of_2(words))
    programs = triton.cdiv(units, lanes // words * WARPS)
    settings = {
        "k": float(chain.k),
        "a": float(chain.a),
        "same_k": float(chain.same_k),
        "same_a": float(chain.same_a),
        "H": H,
        "W": W,
        "TOWERS": chain.towers,
        "WORDS": words,
        "LANES": lanes,
        "HALF": chain.n // 2,
        "SAME_HALF": chain.same_n // 2,
        "POOL": chain.pool,
        "RELU_BEFORE": chain.relu == "before",
        "RELU_AFTER": chain.relu == "after",
    }
    settings = {name: value for name, value in settings.items() if name in kernel.arg_names}
    with torch.cuda.device_of(tensors[0]):
        # Said, as Triton is about to change what it does unasked: a product and its sum are one instruction.
        kernel[(programs,)](*tensors, units, **settings, **more, enable_fp_fusion=True)


# Places


@triton.jit
def _lanes(units, WORDS: tl.constexpr, LANES: tl.constexpr):
    """The unit and the word of every lane, (WARPS, LANES), and whether there is such a unit."""
    UNITS: tl.constexpr = LANES // WORDS
    lane = tl.arange(0, LANES)[None, :]
    warp = tl.program_id(0) * 4 + tl.arange(0, 4)[:, None]
    unit = warp * UNITS + lane // WORDS
    return unit, lane % WORDS, (lane < UNITS * WORDS) & (unit < units)


@triton.jit
def _word_at(pixel, tower, word, TOWERS: tl.constexpr, WORDS: tl.constexpr):
    """Offset of the first map of a word, in elements; a large batch has more than 2³¹."""
    return ((pixel.to(tl.int64) * TOWERS + tower) * WORDS + word) * 8


@triton.jit
def _load(pointer, at, exists, other: tl.constexpr = 0):
    return tl.load(pointer + at[:, :, None] + tl.arange(0, 8)[None, None, :], mask=exists[:, :, None], other=other)


@triton.jit
def _store(pointer, at, exists, values):
    values = values.to(pointer.dtype.element_ty)
    tl.store(pointer + at[:, :, None] + tl.arange(0, 8)[None, None, :], values, mask=exists[:, :, None])


# Windows across maps


@triton.jit
def _maps(values):
    """The eight maps of every word, (WARPS, LANES) each."""
    A: tl.constexpr = values.shape[0]
    B: tl.constexpr = values.shape[1]
    even, odd = tl.split(tl.reshape(values, (A, B, 4, 2)))
    v04, v26 = tl.split(tl.reshape(even, (A, B, 2, 2)))
    v15, v37 = tl.split(tl.reshape(odd, (A, B, 2, 2)))
    v0, v4 = tl.split(v04)
    v1, v5 = tl.split(v15)
    v2, v6 = tl.split(v26)
    v3, v7 = tl.split(v37)
    return v0, v1, v2, v3, v4, v5, v6, v7


@triton.jit
def _words(v0, v1, v2, v3, v4, v5, v6, v7):
    """The inverse of `_maps`."""
    A: tl.constexpr = v0.shape[0]
    B: tl.constexpr = v0.shape[1]
    even = tl.reshape(tl.join(tl.join(v0, v4), tl.join(v2, v6)), (A, B, 4))
    odd = tl.reshape(tl.join(tl.join(v1, v5), tl.join(v3, v7)), (A, B, 4))
    return tl.reshape(tl.join(even, odd), (A, B, 8))


@triton.jit
def _sum_across(values, word, WORDS: tl.constexpr, HALF: tl.constexpr):
    """Sums over HALF maps on either side, clipped at the tower's edges."""
    A: tl.constexpr = values.shape[0]
    B: tl.constexpr = values.shape[1]
    maps = _maps(values)
    lane = tl.arange(0, B)[None, :]
    left = tl.broadcast_to(tl.maximum(lane - 1, 0), (A, B))
    right = tl.broadcast_to(tl.minimum(lane + 1, B - 1), (A, B))
    run = maps
    for i in tl.static_range(HALF):
        below = tl.where(word == 0, 0.0, tl.gather(maps[7 - i], left, 1))
        above = tl.where(word == WORDS - 1, 0.0, tl.gather(maps[i], right, 1))
        run = (below,) + run + (above,)  # noqa: RUF005, Triton has no unpacking
    # Two neighbouring windows share pairs: 3.4 additions per map for n = 5.
    pairs = ()
    for i in tl.static_range(7 + 2 * HALF):
        pairs = pairs + (run[i] + run[i + 1],)  # noqa: RUF005
    sums = ()
    for j in tl.static_range(8):
        total = run[j + 2 * HALF]
        for i in tl.static_range(HALF):
            total += pairs[j + 2 * i]
        sums = sums + (total,)  # noqa: RUF005
    return _words(*sums)


@triton.jit
def _power(d):
    """d^-0.75 and 1/d."""
    r = tl.rsqrt(d)
    return r * tl.sqrt(r), r * r


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _normalised(x, word, k, a, WORDS: tl.constexpr, HALF: tl.constexpr, RELU_BEFORE: tl.constexpr):
    """[ReLU], [normaliser across maps]."""
    x = x.to(tl.float32)
    if RELU_BEFORE:
        x = _relu(x)
    if HALF > 0:
        x *= _power(k + a * _sum_across(x * x, word, WORDS, HALF))[0]
    return x


# Forward


@triton.jit
def _plain_kernel(
    x_ptr, y_ptr, where_ptr, units, k, a,
    WORDS: tl.constexpr, LANES: tl.constexpr,
    HALF: tl.constexpr, RELU_BEFORE: tl.constexpr, RELU_AFTER: tl.constexpr,
):  # fmt: skip
    """[ReLU], [normaliser across maps], [ReLU]; a unit is a pixel's tower."""
    unit, word, exists = _lanes(units, WORDS, LANES)
    at = _word_at(unit, 0, word, 1, WORDS)
    y = _normalised(_load(x_ptr, at, exists), word, k, a, WORDS, HALF, RELU_BEFORE)
    if RELU_AFTER:
        _store(where_ptr, at, exists, tl.where(y <= 0, 255, 0))
        y = _relu(y)
    _store(y_ptr, at, exists, y)


@triton.jit
def _larger(best, place, value, its_place):
    """The larger of two and its place: the first of equals, NaN above all."""
    taken = (value > best) | (value != value)
    return tl.where(taken, value, best), tl.where(taken, its_place, place)


@triton.jit
def _row_maximum(
    x_ptr, pixel, tower, word, exists, third, k, a,
    TOWERS: tl.constexpr, WORDS: tl.constexpr, HALF: tl.constexpr, RELU_BEFORE: tl.constexpr,
):  # fmt: skip
    """The largest of three pixels side by side and its place; `third`: the third lies in the image."""
    x = _load(x_ptr, _word_at(pixel, tower, word, TOWERS, WORDS), exists)
    best = _normalised(x, word, k, a, WORDS, HALF, RELU_BEFORE)
    place = tl.zeros(best.shape, tl.int32)
    for column in tl.static_range(1, 3):
        inside = exists & (third | (column < 2))
        x = _load(x_ptr, _word_at(pixel + column, tower, word, TOWERS, WORDS), inside)
        y = _normalised(x, word, k, a, WORDS, HALF, RELU_BEFORE)
        if column == 2:
            y = tl.where(third[:, :, None], y, float("-inf"))
        best, place = _larger(best, place, y, column)
    return best, place


@triton.jit
def _pool_kernel(
    x_ptr, y_ptr, where_ptr, units, k, a,
    H: tl.constexpr, W: tl.constexpr, TOWERS: tl.constexpr, WORDS: tl.constexpr, LANES: tl.constexpr,
    HALF: tl.constexpr, RELU_BEFORE: tl.constexpr, RELU_AFTER: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """[ReLU], [normaliser across maps], pool, [ReLU]; a unit is ROWS windows one below the other."""
    STRIPS: tl.constexpr = (H // 2 + ROWS - 1) // ROWS
    unit, word, exists = _lanes(units, WORDS, LANES)
    tower = unit % TOWERS
    j = unit // TOWERS % (W // 2)
    strip = unit // (TOWERS * (W // 2))
    i = strip % STRIPS * ROWS
    image = strip // STRIPS
    third = 2 * j + 2 < W
    pixel = (image * H + 2 * i) * W + 2 * j
    best, place = _row_maximum(
        x_ptr, pixel, tower, word, exists, third, k, a, TOWERS, WORDS, HALF, RELU_BEFORE
    )  # fmt: skip
    for _ in range(ROWS):
        exists &= i < H // 2
        pixel += W
        below, its_place = _row_maximum(
            x_ptr, pixel, tower, word, exists, third, k, a, TOWERS, WORDS, HALF, RELU_BEFORE
        )  # fmt: skip
        y, where = _larger(best, place, below, its_place + 3)
        pixel += W
        inside = 2 * i + 2 < H
        best, place = _row_maximum(
            x_ptr, pixel, tower, word, exists & inside, third, k, a, TOWERS, WORDS, HALF, RELU_BEFORE
        )  # fmt: skip
        y, where = _larger(y, where, tl.where(inside[:, :, None], best, float("-inf")), place + 6)
        if RELU_AFTER:
            where = tl.where(y <= 0, 255, where)
            y = _relu(y)
        at = _word_at((image * (H // 2) + i) * (W // 2) + j, tower, word, TOWERS, WORDS)
        _store(where_ptr, at, exists, where)
        _store(y_ptr, at, exists, y)
        i += 1


# Quads


@triton.jit
def _quad(units, H: tl.constexpr, W: tl.constexpr, TOWERS: tl.constexpr, WORDS: tl.constexpr, LANES: tl.constexpr):
    """Image, row and column of quads, tower, word, and whether there is such a unit."""
    ROWS: tl.constexpr = (H + 1) // 2
    COLUMNS: tl.constexpr = (W + 1) // 2
    unit, word, exists = _lanes(units, WORDS, LANES)
    row = unit // (TOWERS * COLUMNS)
    return row // ROWS, row % ROWS, unit // TOWERS % COLUMNS, unit % TOWERS, word, exists


@triton.jit
def _pixel(
    image, y, x, tower, word, exists, H: tl.constexpr, W: tl.constexpr, TOWERS: tl.constexpr, WORDS: tl.constexpr
):
    """Offset of a word of one pixel, and whether the pixel lies in the image."""
    at = _word_at((image * H + y) * W + x, tower, word, TOWERS, WORDS)
    return at, exists & (y >= 0) & (y < H) & (x >= 0) & (x < W)


@triton.jit
def _arriving(
    g_ptr, where_ptr, image, i, j, tower, word, exists,
    H: tl.constexpr, W: tl.constexpr, TOWERS: tl.constexpr, WORDS: tl.constexpr,
    POOL: tl.constexpr, RELU_AFTER: tl.constexpr,
):  # fmt: skip
    """Gradients of a quad's four pixels before the pool and the ReLU after it."""
    gs = ()
    places = ()
    for q in tl.static_range(4):
        if POOL:  # windows (i-1, j-1), (i-1, j), (i, j-1), (i, j)
            at, inside = _pixel(
                image, i - 1 + q // 2, j - 1 + q % 2, tower, word, exists, H // 2, W // 2, TOWERS, WORDS
            )  # fmt: skip
            places = places + (_load(where_ptr, at, inside, 255),)  # noqa: RUF005
        else:
            at, inside = _pixel(image, 2 * i + q // 2, 2 * j + q % 2, tower, word, exists, H, W, TOWERS, WORDS)
        g = _load(g_ptr, at, inside).to(tl.float32)
        if RELU_AFTER and not POOL:
            g = tl.where(_load(where_ptr, at, inside) == 255, 0.0, g)
        gs = gs + (g,)  # noqa: RUF005
    arriving = gs
    if POOL:
        arriving = ()
        for q in tl.static_range(4):
            total = tl.zeros(gs[0].shape, tl.float32)
            for w in tl.static_range(4):
                # A quad opens window (i, j); the windows above and to the left end at its first row and column.
                if q // 2 <= w // 2 and q % 2 <= w % 2:
                    place = 3 * (q // 2 + 2 - w // 2 * 2) + q % 2 + 2 - w % 2 * 2
                    total += tl.where(places[w] == place, gs[w], 0.0)
            arriving = arriving + (total,)  # noqa: RUF005
    return arriving


@triton.jit
def _block_sums(
    v_ptr, image, i, j, tower, word, exists,
    H: tl.constexpr, W: tl.constexpr, TOWERS: tl.constexpr, WORDS: tl.constexpr,
    HALF: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """Sums of values or squares over the windows around each pixel of a quad, clipped at the edges."""
    left = tl.zeros(
        (exists.shape[0], exists.shape[1], 8), tl.float32
    )  # of rows all four windows or both rows share
    right = left
    top = (left, left)
    bottom = (left, left)
    for dy in tl.static_range(-HALF, HALF + 2):
        first = tl.zeros(left.shape, tl.float32)
        middle = first
        last = first
        for dx in tl.static_range(-HALF, HALF + 2):
            at, inside = _pixel(image, 2 * i + dy, 2 * j + dx, tower, word, exists, H, W, TOWERS, WORDS)
            v = _load(v_ptr, at, inside).to(tl.float32)
            if SQUARES:
                v = v * v
            if dx == -HALF:
                first = v
            elif dx == HALF + 1:
                last = v
            else:
                middle += v
        if dy == -HALF:
            top = (middle + first, middle + last)
        elif dy == HALF + 1:
            bottom = (middle + first, middle + last)
        else:
            left += middle + first
            right += middle + last
    return top[0] + left, top[1] + right, left + bottom[0], right + bottom[1]


@triton.jit
def _same_map_kernel(
    u_ptr, v_ptr, units, same_k, same_a,
    H: tl.constexpr, W: tl.constexpr, TOWERS: tl.constexpr, WORDS: tl.constexpr, LANES: tl.constexpr,
    SAME_HALF: tl.constexpr,
):  # fmt: skip
    """The normaliser over pixels of the same map."""
    image, i, j, tower, word, exists = _quad(units, H, W, TOWERS, WORDS, LANES)
    sums = _block_sums(u_ptr, image, i, j, tower, word, exists, H, W, TOWERS, WORDS, SAME_HALF, True)
    for q in tl.static_range(4):
        at, inside = _pixel(image, 2 * i + q // 2, 2 * j + q % 2, tower, word, exists, H, W, TOWERS, WORDS)
        u = _load(u_ptr, at, inside).to(tl.float32)
        _store(v_ptr, at, inside, u * _power(same_k + same_a * sums[q])[0])


# Backward


@triton.jit
def _same_map_gradient_kernel(
    u_ptr, g_ptr, where_ptr, direct_ptr, through_ptr, units, same_k, same_a,
    H: tl.constexpr, W: tl.constexpr, TOWERS: tl.constexpr, WORDS: tl.constexpr, LANES: tl.constexpr,
    SAME_HALF: tl.constexpr, POOL: tl.constexpr, RELU_AFTER: tl.constexpr,
):  # fmt: skip
    """The same-map normaliser's gradient in two parts: g·d^-beta, and g·v/d, still to be summed over windows."""
    image, i, j, tower, word, exists = _quad(units, H, W, TOWERS, WORDS, LANES)
    sums = _block_sums(u_ptr, image, i, j, tower, word, exists, H, W, TOWERS, WORDS, SAME_HALF, True)
    gs = _arriving(
        g_ptr, where_ptr, image, i, j, tower, word, exists, H, W, TOWERS, WORDS, POOL, RELU_AFTER
    )  # fmt: skip
    for q in tl.static_range(4):
        at, inside = _pixel(image, 2 * i + q // 2, 2 * j + q % 2, tower, word, exists, H, W, TOWERS, WORDS)
        u = _load(u_ptr, at, inside).to(tl.float32)
        power, inverse = _power(same_k + same_a * sums[q])
        direct = gs[q] * power
        _store(direct_ptr, at, inside, direct)
        _store(through_ptr, at, inside, direct * u * inverse)


@triton.jit
def _gradient_kernel(
    x_ptr, g_ptr, where_ptr, through_ptr, dx_ptr, units, k, a, same_a,
    H: tl.constexpr, W: tl.constexpr, TOWERS: tl.constexpr, WORDS: tl.constexpr, LANES: tl.constexpr,
    HALF: tl.constexpr, SAME_HALF: tl.constexpr, POOL: tl.constexpr,
    RELU_BEFORE: tl.constexpr, RELU_AFTER: tl.constexpr, THROUGH: tl.constexpr,
):  # fmt: skip
    """dL/dx from g = dL/dy, or (THROUGH) from the two parts of a same-map normaliser that comes after."""
    image, i, j, tower, word, exists = _quad(units, H, W, TOWERS, WORDS, LANES)
    gs = _arriving(
        g_ptr, where_ptr, image, i, j, tower, word, exists, H, W, TOWERS, WORDS, POOL, RELU_AFTER
    )  # fmt: skip
    if THROUGH:
        sums = _block_sums(through_ptr, image, i, j, tower, word, exists, H, W, TOWERS, WORDS, SAME_HALF, False)
    for q in tl.static_range(4):
        at, inside = _pixel(image, 2 * i + q // 2, 2 * j + q % 2, tower, word, exists, H, W, TOWERS, WORDS)
        x = _load(x_ptr, at, inside).to(tl.float32)
        if RELU_BEFORE:
            x = _relu(x)
        g = gs[q]
        if HALF > 0:
            power, inverse = _power(k + a * _sum_across(x * x, word, WORDS, HALF))
            if THROUGH:
                g -= 1.5 * same_a * x * power * sums[q]
            g *= power
            g -= 1.5 * a * x * _sum_across(g * x * inverse, word, WORDS, HALF)
        elif THROUGH:
            g -= 1.5 * same_a * x * sums[q]
        if RELU_BEFORE:
            g = tl.where(x <= 0, 0.0, g)
        _store(dx_ptr, at, inside, g)
