"""Compiles Triton kernels for devices that this machine does not have, and says what came out.

A test names its kernel's cases and compiles each for each target:

    @pytest.mark.parametrize(("target", "case"), compile_cases(*CASES))
    def test_compiles(target: str, case: str) -> None:
        compile_kernel(_kernel, target, CASES[case], num_warps=4).check()
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

SHARED_LIMIT = {"gfx1100": 64 << 10, "gfx1151": 64 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10}
"""Every target of DESIGN section 5, with the bytes of shared memory that one program may have."""

IN_MAKE_TEST = ("gfx1100", "sm_90")
"""Targets of the first case of a kernel in `make test`; `make test-compile` runs the rest."""

POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.uint8: "*u8", torch.int8: "*i8",
    torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1", torch.float64: "*fp64",
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """What a kernel became. `spilled` counts bytes or registers that did not fit, as the target reports them.

    asm: the AMD assembly or the PTX. ttgir: Triton's own form, with the layouts. registers: per lane.
    """

    target: str
    asm: str
    ttgir: str
    shared: int
    registers: int
    spilled: int

    @property
    def matrix_instructions(self) -> int:
        """WMMA or mma/wgmma instructions in the text of the assembly."""
        return len(re.findall(r"^\s*(?:v_wmma|mma\.sync|wgmma\.mma_async)", self.asm, re.MULTILINE))

    def check(self, matrix: bool = False, spilled: int = 0) -> Compiled:
        """Assert that no more than `spilled` spilled, that shared memory suffices and, on demand, that matrix cores
        are used."""
        assert self.spilled <= spilled, f"{self.target}: spills {self.spilled}, has {self.registers} registers"
        limit = SHARED_LIMIT[self.target]
        assert self.shared <= limit, f"{self.target}: {self.shared} bytes of shared memory of {limit}"
        assert not matrix or self.matrix_instructions, f"{self.target}: no matrix instruction"
        return self


def compile_kernel(kernel: Any, target: str, arguments: Mapping[str, Any], **options: int) -> Compiled:
    """Compile as a launch with these arguments would.

    kernel: a function under `triton.jit` or `gluon.jit`. target: a key of SHARED_LIMIT. arguments, by name: a
    torch.dtype stands for a tensor (16-byte aligned), a number for itself, a tuple for its members; parameters marked
    `tl.constexpr` and None are taken as they are.
    options: num_warps, num_stages and so on.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    signature, constants, aligned = {}, {}, {}
    assert set(arguments) == set(kernel.arg_names), f"{kernel.__name__} takes {', '.join(kernel.arg_names)}"

    def kind_of(value: Any, place: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(kind_of(each, (*place, index)) for index, each in enumerate(value))
        if isinstance(value, torch.dtype):
            kind = POINTERS[value]
        elif isinstance(value, float):
            return "fp32"
        elif value is None or value == 1:  # A launch makes a constant of 1.
            constants[place] = value
            return "constexpr"
        else:
            kind = "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
        if isinstance(value, torch.dtype) or value % 16 == 0:
            aligned[place] = [["tt.divisibility", 16]]
        return kind

    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            constants[place,], signature[parameter.name] = value, "constexpr"
        else:
            signature[parameter.name] = kind_of(value, (place,))
    arch: int | str = target if target.startswith("gfx") else int(target.removeprefix("sm_"))
    backend = GPUTarget("hip" if isinstance(arch, str) else "cuda", arch, 32)
    source = GluonASTSource if kernel.is_gluon() else ASTSource
    made = triton.compile(source(kernel, signature, constants, aligned), target=backend, options=options)
    shared, ttgir = made.metadata.shared, made.asm["ttgir"]
    if isinstance(arch, str):
        asm = made.asm["amdgcn"]
        counts = {name: int(count) for name, count in re.findall(r"^\s*\.(\w+):\s+(\d+)$", asm, re.MULTILINE)}
        spilled = sum(counts[f"{name}_spill_count"] for name in ("vgpr", "sgpr")) + counts["private_segment_fixed_size"]
        return Compiled(target, asm, ttgir, shared, counts["vgpr_count"], spilled)
    usage = _cubin_usage(made.asm["cubin"])
    return Compiled(target, made.asm["ptx"], ttgir, shared, usage["REG"], usage["STACK"] + usage["LOCAL"])


def serialised(ptx: str) -> list[str]:
    """What ptxas says about products of sm_90 that it makes one after the other instead of in flight."""
    from triton import knobs

    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [knobs.nvidia.ptxas.path, "-arch=sm_90a", "-v", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line for line in (said.stdout + said.stderr).splitlines() if "serialized" in line]


def _cubin_usage(cubin: bytes) -> dict[str, int]:
    """What ptxas gave the kernel: REG registers, STACK and LOCAL bytes."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(count) for name, count in re.findall(r"(\w+):(\d+)", text)}


def compile_cases(*cases: str, everywhere: Collection[str] | None = None) -> list[Any]:
    """Parameters (target, case), marked `compile`; all are slow too, but for the first case on IN_MAKE_TEST.

    everywhere: the cases for every target, all unless given; the others are for IN_MAKE_TEST alone.
    """
    marks = pytest.mark.compile, pytest.mark.slow
    return [
        pytest.param(target, case, marks=marks[:1] if place == 0 and target in IN_MAKE_TEST else marks)
        for place, case in enumerate(cases)
        for target in SHARED_LIMIT
        if everywhere is None or case in everywhere or target in IN_MAKE_TEST
    ]
