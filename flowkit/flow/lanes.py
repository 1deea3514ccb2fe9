# mypy: ignore-errors
"""What turns compiled loops into vectors, and vectors in LLVM's code where it makes none itself.

For the kernels of this package and of the trajectories. Every processor that Numba knows runs them,
those without registers of that width in two halves.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.extending import intrinsic, register_jitable

LANES = 8  # floats
LINE = 16  # floats of a line of the cache, and of the widest vectors


class NoAlias(CompilerBase):
    """Numba's usual compiler, told that no two array arguments overlap.

    Without it a row kernel of ten arrays is guarded by tests that LLVM gives up on.
    """

    def define_pipelines(self):
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


@intrinsic
def wide(typingctx):
    """Let loops of the function that calls this become vectors as wide as the processor's.

    LLVM takes half that width where it may choose, since the first processors with registers of 512
    bits lowered their clock for them. Wide ones pay where arrays begin and end with a line of the
    cache: see `aligned`.
    """

    def codegen(context, builder, signature, args):
        # llvmlite's own `add` knows attributes without a value only
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), codegen


@register_jitable
def from_line(cells):
    """All of the float32 `cells` but LINE, from where a line of the cache begins."""
    first = (-cells.ctypes.data >> 2) % LINE
    return cells[first : first + len(cells) - LINE]


@njit(error_model="numpy", forceinline=True)
def aligned(count):
    """So many zeros, float32, from the beginning of a line of the cache on."""
    return from_line(np.zeros(count + LINE, np.float32))


class Vectors:
    """Writes the code that works on vectors of LANES floats, or of as many as it is told.

    flags: LLVM's, of its arithmetic; "contract" lets a product and a sum be rounded once.
    """

    low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    first, second = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    halves = ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])

    def __init__(self, builder, lanes=LANES, flags=("contract",)):
        self.builder, self.flags = builder, flags
        self.floats = ir.VectorType(ir.FloatType(), lanes)

    def pointer(self, base, place):
        return self.builder.bitcast(self.builder.gep(base, [place]), self.floats.as_pointer())

    def load(self, base, place):
        return self.builder.load(self.pointer(base, place), align=4)

    def store(self, value, base, place):
        self.builder.store(value, self.pointer(base, place), align=4)

    def spread(self, base, place):
        """One float of an array in every lane."""
        return self.fill(self.builder.load(self.builder.gep(base, [place])))

    def fill(self, value):
        empty = ir.Constant(self.floats, ir.Undefined)
        one = self.builder.insert_element(empty, value, ir.IntType(32)(0))
        return self.shuffle(one, empty, [0] * self.floats.count)

    def shuffle(self, one, other, places):
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(map(int, places)))
        return self.builder.shuffle_vector(one, other, mask)

    def multiply(self, one, other):
        return self.builder.fmul(one, other, flags=self.flags)

    def add(self, one, other):
        return self.builder.fadd(one, other, flags=self.flags)

    def merge(self, one, other):
        """The vectors of two lists, each in order lane by lane, as one (Batcher's merge)."""
        if not one or not other:
            return one or other
        if len(one) == len(other) == 1:
            return list(self._ordered(one[0], other[0]))
        even, odd = self.merge(one[::2], other[::2]), self.merge(one[1::2], other[1::2])
        result = even[:1]
        for k, value in enumerate(odd):
            result += self._ordered(value, even[k + 1]) if k + 1 < len(even) else (value,)
        return result + even[len(odd) + 1 :]

    def _ordered(self, one, other):
        less = self.builder.fcmp_ordered("<", one, other)
        return self.builder.select(less, one, other), self.builder.select(less, other, one)

    def turn(self, rows):
        """Eight vectors of eight as those of their first, second, ... lanes."""
        pairs = [
            [self.shuffle(*rows[k : k + 2], mask) for mask in (self.low, self.high)]
            for k in (0, 2, 4, 6)
        ]
        fours = [
            [self.shuffle(a, b, mask) for a, b in zip(pairs[k], pairs[k + 1], strict=True)
             for mask in (self.first, self.second)]
            for k in (0, 2)
        ]  # fmt: skip
        return [
            self.shuffle(fours[0][lane % 4], fours[1][lane % 4], self.halves[lane // 4])
            for lane in range(LANES)
        ]


def pointers(context, builder, signature, args, places):
    """Where the data of the arrays among the arguments lie."""
    return [context.make_array(signature.args[k])(context, builder, args[k]).data for k in places]
