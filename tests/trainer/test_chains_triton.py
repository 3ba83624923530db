"""The GPU kernels without a GPU: their values through Triton's interpreter, their code through its compiler.

The interpreter is chosen when Triton is imported, so this file is also a program: run with TRITON_INTERPRET=1 it
leaves what the kernels make of every case in the file it is given. Expected is a composition of torch's own
operations in float64, with its derivative.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="Triton comes with torch for CUDA, and with alexshard's dev extra")

from alexshard.trainer import chains_triton
from alexshard.trainer.chains import Chain

CHAINS = {
    "layer 1, original": Chain(n=5, a=2e-5, pool=True, relu="after"),
    "layer 1, paper": Chain(n=5, a=1e-4, pool=True, relu="before"),
    "layer 2, original": Chain(n=5, a=2e-5, same_n=5, same_a=4e-5, pool=True, relu="before"),
    "layer 2, paper": Chain(n=5, a=1e-4, pool=True, relu="before"),
    "layer 5": Chain(pool=True, relu="after"),
}
OTHERS = {
    "normaliser alone, one tower": Chain(towers=1, n=5, k=1.0, a=1e-3),
    "three maps, ReLU after": Chain(n=3, a=1e-4, relu="after"),
    "seventeen maps": Chain(n=17, a=1e-4),
    "same map alone": Chain(same_n=3, same_a=4e-5),
    "same map, ReLU after": Chain(n=5, a=1e-4, same_n=5, same_a=4e-5, relu="after"),
    "same map, pool, ReLU after": Chain(n=5, a=1e-4, same_n=5, same_a=4e-5, pool=True, relu="after"),
    "pool alone": Chain(pool=True),
}
# Maps per tower of one, two and three words, and of more than a warp has lanes; odd and even sides.
SHAPES = {"layer 1, paper": (1, 528, 4, 5), "layer 2, paper": (2, 48, 12, 6), "layer 5": (3, 32, 6, 9)}
CASES = [
    (name, dtype, SHAPES.get(name, (2, 48, 7, 10)))
    for dtype in (torch.float32, torch.bfloat16)
    for name in CHAINS | OTHERS
] + [("layer 1, original", torch.float16, (2, 16, 21, 9)), ("layer 2, original", torch.float16, (1, 16, 7, 6))]
IDS = [f"{name}, {str(dtype)[6:]}" for name, dtype, _ in CASES]


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int, std: float) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def maps(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Large enough for the normalisers to matter: a·sum is about 1."""
    return drawn(shape, dtype, seed=5, std=60)


def gradient(y: Tensor) -> Tensor:
    return drawn(tuple(y.shape), y.dtype, seed=6, std=1)


def specials() -> dict[str, Tensor]:
    """Constant maps with one NaN, and one with two equal peaks in a window."""
    nan, ties = torch.zeros(1, 8, 6, 6), torch.zeros(1, 8, 6, 6)
    nan[0, 3, 2, 2] = torch.nan
    ties[0, :, 1, 2] = ties[0, :, 2, 0] = 1
    return {key: x.contiguous(memory_format=torch.channels_last) for key, x in (("nan", nan), ("ties", ties))}


def through_the_interpreter() -> dict[Any, tuple[Tensor, ...]]:
    results: dict[Any, tuple[Tensor, ...]] = {}
    for name, dtype, shape in CASES:
        x, chain = maps(shape, dtype), (CHAINS | OTHERS)[name]
        y, where = chains_triton.forward(x, chain)
        results[name, dtype] = y, where, chains_triton.backward(gradient(y), x, where, chain)
    for key, x in specials().items():
        results[key] = chains_triton.forward(x, Chain(towers=1, pool=True))
    x = specials()["nan"]
    results["nan, normalised"] = chains_triton.forward(x, Chain(towers=1, n=5, a=1e-4, relu="before"))
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, tuple[Tensor, ...]]:
    path = tmp_path_factory.mktemp("interpreted") / "results.pt"
    subprocess.run([sys.executable, __file__, str(path)], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)
    return torch.load(path)


def normalised(x: Tensor, chain: Chain) -> Tensor:
    """The chain up to the pool."""
    if chain.relu == "before":
        x = F.relu(x)
    if chain.n:
        lrn = torch.nn.LocalResponseNorm(chain.n, alpha=chain.a * chain.n, beta=0.75, k=chain.k)
        x = lrn(x.reshape(-1, x.shape[1] // chain.towers, *x.shape[2:])).view_as(x)
    if chain.same_n:
        sums = F.avg_pool2d(x * x, chain.same_n, stride=1, padding=chain.same_n // 2, divisor_override=1)
        x = x * (chain.same_k + chain.same_a * sums) ** -0.75
    return x


def expected_y(x: Tensor, chain: Chain) -> Tensor:
    y = normalised(x, chain)
    if chain.pool:
        y = F.max_pool2d(y, 3, 2, ceil_mode=True)
    return F.relu(y) if chain.relu == "after" else y


def taken(v: Tensor, where: Tensor) -> Tensor:
    """The values of v at the places of `where`; zero for 255."""
    rows, columns = (torch.arange(side) * 2 for side in where.shape[2:])
    place = where.long() % 255
    pixel = (rows[:, None] + place // 3) * v.shape[3] + columns + place % 3
    return v.flatten(2).gather(2, pixel.flatten(2)).view(where.shape) * (where != 255)


def of(results: dict[Any, tuple[Tensor, ...]], case: tuple[str, torch.dtype, tuple[int, ...]]) -> Any:
    name, dtype, shape = case
    return (CHAINS | OTHERS)[name], maps(shape, dtype), *results[name, dtype]


def tolerance(chain: Chain, dtype: torch.dtype) -> float:
    """One rounding of the result, and two more around the same-map normaliser; the interpreter cuts bits off."""
    return 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps * (3 if chain.same_n else 1)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_kernels_give_the_values_of_torchs_operations_in_float64(results, case):
    chain, x, y, _, _ = of(results, case)
    expected = expected_y(x.double(), chain)

    assert (y.dtype, y.is_contiguous(memory_format=torch.channels_last)) == (x.dtype, True)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance(chain, x.dtype) * 1.01, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_where_is_the_place_of_the_maximum_and_255_below_a_relu(results, case):
    chain, x, y, where, _ = of(results, case)
    if not chain.pool:
        zeroed = (y == 0).byte() * 255 if chain.relu == "after" else y.new_empty(0, dtype=torch.uint8)
        assert zeroed.flatten().tolist() == where.flatten().tolist()
        return
    v = normalised(x.double(), chain)

    assert where.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(where == 255, (y == 0) if chain.relu == "after" else torch.zeros_like(y, dtype=torch.bool))
    torch.testing.assert_close(
        taken(v, where), expected_y(x.double(), chain), rtol=tolerance(chain, x.dtype), atol=1e-9
    )
    if x.dtype == torch.float32:
        first = F.max_pool2d(v, 3, 2, ceil_mode=True, return_indices=True)[1]
        places = taken(torch.arange(v[0, 0].numel()).view(v.shape[2:]).expand(v.shape), where)
        assert torch.equal(places[where != 255], first[where != 255])


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_gradient_is_the_derivative_of_torchs_operations_in_float64(results, case):
    chain, x, y, where, dx = of(results, case)
    wide = x.double().requires_grad_()
    v = normalised(wide, chain)
    # Where two values of a window differ by less than a rounding, either may be the maximum.
    v = taken(v, where) if chain.pool else F.relu(v) if chain.relu == "after" else v
    (expected,) = torch.autograd.grad(v, wide, gradient(y).double())

    assert (dx.dtype, dx.is_contiguous(memory_format=torch.channels_last)) == (x.dtype, True)
    rounding = tolerance(chain, x.dtype)
    torch.testing.assert_close(
        dx.double(), expected, rtol=rounding * 2, atol=rounding * float(expected.abs().max())
    )


def test_the_first_of_equal_maxima_is_taken(results):
    y, where = results["ties"]

    assert y[0, 0].tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert where[0, 0].tolist() == [[5, 3, 0], [0, 0, 0], [0, 0, 0]]


def test_a_nan_is_the_maximum_of_its_windows(results):
    y, where = results["nan"]

    assert y[0, 3].isnan().tolist() == [[True, True, False], [True, True, False], [False, False, False]]
    assert where[0, 3].tolist() == [[8, 6, 0], [2, 0, 0], [0, 0, 0]]
    assert not y[0, :3].isnan().any()


def test_a_nan_reaches_the_windows_across_maps_it_is_in(results):
    y, _ = results["nan, normalised"]

    assert y[0, :, 2, 2].isnan().tolist() == [False, True, True, True, True, True, False, False]
    assert y.isnan().sum() == 5


@pytest.mark.parametrize(
    ("chain", "maps_of_all"), [(Chain(pool=True), 24), (Chain(n=19), 32), (Chain(same_n=11), 32)]
)
def test_what_the_kernels_cannot_do_is_refused(chain, maps_of_all):
    with pytest.raises(ValueError, match="the kernels take"):
        chains_triton.forward(torch.empty(1, maps_of_all, 6, 6), chain)


@dataclasses.dataclass
class Compiler:
    """Stands for a kernel, and compiles for an H100 or H200 what is launched; such a card need not be there."""

    kernel: Any
    folder: Path
    usages: list[str]

    @property
    def arg_names(self) -> list[str]:
        return self.kernel.arg_names

    def __getitem__(self, _grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *args: Any, **settings: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        options = {name: settings.pop(name) for name in settings.keys() - set(self.arg_names)}
        constants = {name: v for name, v in settings.items() if not isinstance(v, float)}
        values = dict(zip(self.arg_names, args, strict=False)) | settings
        signature = {name: "constexpr" if name in constants else argument_type(v) for name, v in values.items()}
        aligned = {(at,): [["tt.divisibility", 16]] for at, v in enumerate(args) if isinstance(v, Tensor)}
        source = ASTSource(self.kernel, signature, constants, aligned)
        path = self.folder / "kernel.cubin"
        path.write_bytes(triton.compile(source, GPUTarget("cuda", 90, 32), options).asm["cubin"])
        tool = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        self.usages.append(subprocess.run(tool, check=True, capture_output=True, text=True).stdout)


def argument_type(value: Tensor | float) -> str:
    if isinstance(value, Tensor):
        return {torch.bfloat16: "*bf16", torch.uint8: "*u8"}[value.dtype]
    return {int: "i32", float: "fp32"}[type(value)]


LAYERS = {"1": (128, 96, 55, 55), "2": (128, 256, 27, 27), "5": (128, 256, 13, 13)}


@pytest.mark.parametrize("name", CHAINS)
def test_every_kernel_of_alexnet_compiles_for_an_h200_without_spills_or_shared_memory(name, monkeypatch, tmp_path):
    usages: list[str] = []
    for kernel in [name for name in vars(chains_triton) if name.endswith("_kernel")]:
        original = getattr(chains_triton, kernel)
        monkeypatch.setattr(chains_triton, kernel, Compiler(original, tmp_path, usages))
    x = torch.empty(LAYERS[name[6]], dtype=torch.bfloat16, device="meta", memory_format=torch.channels_last)

    y, where = chains_triton.forward(x, CHAINS[name])
    chains_triton.backward(y, x, where, CHAINS[name])

    assert (6 if CHAINS[name].same_n else 2) == len(usages)
    for usage in usages:
        assert re.search(r"REG:\d+ STACK:0 SHARED:0 LOCAL:0", usage), usage


if __name__ == "__main__":
    torch.save(through_the_interpreter(), sys.argv[1])
