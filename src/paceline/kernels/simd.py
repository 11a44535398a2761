"""The CPU matmul: one hand-written vector loop, compiled by LLVM for the machine it runs on.

Weights lie in panels of 64 columns, [panels, K, 64], so a panel streams from memory in one piece. The inner loop
keeps a tile of `rows x columns` sums in registers and walks K in order, one fused multiply-add a step. A row's sum is
therefore the same chain of operations whether it runs alone or beside others: row-count invariance by construction.
bf16 weights are widened in registers, so they cost half the memory traffic and give the bits of their fp32 copies.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

PANEL = 64
# Below this many multiply-adds (under a millisecond on one core) a second thread is not worth waking: on an idle
# machine it saves little, on a busy one the wait for it costs ten times what it saves.
PARALLEL_WORK = 16_000_000

_HAS_512 = bool(llvmlite.binding.get_host_cpu_features().get("avx512f", False))
# (lanes, vectors, rows) of the register tile: 6 x 4 of 32 registers with AVX-512, 4 x 2 of 16 otherwise.
LANES, VECTORS, TILE = (16, 4, 6) if _HAS_512 else (8, 2, 4)

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VEC = ir.VectorType(_F32, LANES)


def _i64(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _load_weights(b: ir.IRBuilder, base: ir.Value, narrow: bool) -> list[ir.Value]:
    """`VECTORS` vectors of fp32 weights at `base`; bf16 is the upper half of an fp32."""
    loaded = []
    for j in range(VECTORS):
        address = b.gep(base, [_i64(j * LANES)])
        if narrow:
            raw = b.load(b.bitcast(address, ir.VectorType(_I16, LANES).as_pointer()), align=2)
            wide = ir.VectorType(_I32, LANES)
            loaded.append(b.bitcast(b.shl(b.zext(raw, wide), ir.Constant(wide, [16] * LANES)), _VEC))
        else:
            loaded.append(b.load(b.bitcast(address, _VEC.as_pointer()), align=4))
    return loaded


def _broadcast(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    undefined = ir.Constant(_VEC, ir.Undefined)
    first = b.insert_element(undefined, b.load(address), ir.Constant(_I32, 0))
    return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def _emit_tile(b: ir.IRBuilder, args: tuple[ir.Value, ...], rows: int, narrow: bool) -> None:
    """y[r, :] += sum over k of x[r, k] * w[k, :], for `rows` rows and LANES * VECTORS columns, sums in registers."""
    x, x_stride, w, length, y, y_stride = args
    fma = b.module.declare_intrinsic(f"llvm.fma.v{LANES}f32", (), ir.FunctionType(_VEC, [_VEC] * 3))
    x_rows = [b.gep(x, [b.mul(x_stride, _i64(r))]) for r in range(rows)]
    y_rows = [b.gep(y, [b.mul(y_stride, _i64(r))]) for r in range(rows)]
    places = [[b.bitcast(b.gep(row, [_i64(j * LANES)]), _VEC.as_pointer()) for j in range(VECTORS)] for row in y_rows]
    begun = [[b.load(place, align=4) for place in row] for row in places]
    entry, loop, done = b.block, b.append_basic_block("k"), b.append_basic_block("done")
    b.branch(loop)
    b.position_at_end(loop)
    k = b.phi(_I64)
    k.add_incoming(_i64(0), entry)
    sums = [[b.phi(_VEC) for _ in range(VECTORS)] for _ in range(rows)]
    weights = _load_weights(b, b.gep(w, [b.mul(k, _i64(PANEL))]), narrow)
    new = []
    for r in range(rows):
        value = _broadcast(b, b.gep(x_rows[r], [k]))
        new.append([b.call(fma, [value, weights[j], sums[r][j]]) for j in range(VECTORS)])
    following = b.add(k, _i64(1))
    k.add_incoming(following, loop)
    for r in range(rows):
        for j in range(VECTORS):
            sums[r][j].add_incoming(begun[r][j], entry)
            sums[r][j].add_incoming(new[r][j], loop)
    b.cbranch(b.icmp_signed("<", following, length), loop, done)
    b.position_at_end(done)
    for r in range(rows):
        for j in range(VECTORS):
            b.store(new[r][j], places[r][j], align=4)


def _tile(rows: int) -> Any:
    """The register tile for a fixed number of rows, as a function Numba can inline."""

    @intrinsic
    def tile(_context: Any, x: Any, x_stride: Any, w: Any, length: Any, y: Any, y_stride: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            _emit_tile(builder, args, rows, signature.args[2].dtype == types.uint16)
            return context.get_dummy_value()

        return types.void(x, x_stride, w, length, y, y_stride), generate

    return tile


@intrinsic
def _address(_context: Any, array: Any, offset: Any) -> Any:
    """A pointer to element `offset` of a contiguous array."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return types.CPointer(array.dtype)(array, offset), generate


_tile_1, _tile_2, _tile_3, _tile_4, _tile_5, _tile_6 = (_tile(rows) for rows in range(1, 7))


@njit(cache=True, error_model="numpy")
def _run_tile(rows, xp, x_stride, wp, length, yp, stride):
    if rows == 1:
        _tile_1(xp, x_stride, wp, length, yp, stride)
    elif rows == 2:
        _tile_2(xp, x_stride, wp, length, yp, stride)
    elif rows == 3:
        _tile_3(xp, x_stride, wp, length, yp, stride)
    elif rows == 4:
        _tile_4(xp, x_stride, wp, length, yp, stride)
    elif rows == 5:
        _tile_5(xp, x_stride, wp, length, yp, stride)
    else:
        _tile_6(xp, x_stride, wp, length, yp, stride)


@njit(cache=True, error_model="numpy")
def panel_product(x, x_at, x_stride, w, w_at, length, y, y_at, y_stride, rows):
    """y[rows, 64] += x[rows, length] @ w[length, 64] for at most TILE rows, all given as flat offsets into arrays."""
    for c in range(0, PANEL, LANES * VECTORS):
        _run_tile(rows, _address(x, x_at), x_stride, _address(w, w_at + c), length, _address(y, y_at + c), y_stride)


@njit(cache=True, error_model="numpy")
def _panel(x, w, y, p):
    """y[:, panel p] = x @ panel p. The last panel of an odd width goes through a scratch row block."""
    n, length, width = x.shape[0], x.shape[1], y.shape[1]
    whole = (p + 1) * PANEL <= width
    target = y if whole else np.zeros((n, PANEL), np.float32)
    stride, start = (width, p * PANEL) if whole else (PANEL, 0)
    for r in range(0, n, TILE):
        rows = min(n - r, TILE)
        panel_product(x, r * length, length, w, p * length * PANEL, length, target, r * stride + start, stride, rows)
    if not whole:
        y[:, p * PANEL :] = target[:, : width - p * PANEL]


@njit(cache=True, error_model="numpy")
def matmul_serial(x, w, y):
    for p in range(w.shape[0]):
        _panel(x, w, y, p)


@njit(cache=True, parallel=True, error_model="numpy")
def _matmul_parallel(x, w, y):
    for p in prange(w.shape[0]):
        _panel(x, w, y, p)


def matmul(x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
    """y [n, N] += x [n, K] @ w, w in panels [ceil(N / 64), K, 64] of fp32, or of bf16 bits as uint16.

    Threads share panels, never a sum, so the number of threads changes no bit either.
    """
    if len(x) * w.size < PARALLEL_WORK or numba.get_num_threads() == 1:
        matmul_serial(x, w, y)
    else:
        _matmul_parallel(x, w, y)
