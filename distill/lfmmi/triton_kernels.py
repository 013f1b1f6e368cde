"""The Triton kernels of `distill.lfmmi.triton`: whole passes over all frames, one program per utterance and direction.

Pointers into packed tensors are named by their targets (`label_of`, `arc_from`); capitals are sizes,
those known at compile time marked so. Tables of a factored graph are those of `distill.lfmmi.triton_tables.Gathers`.

Properties that the interpreter, which runs a program as one thread, cannot test, and why they hold on a GPU:
- No program reads what another writes: every pointer is moved to the program's own utterance and direction first.
- Within a program the threads that store a number need not be those that load it again, and Triton orders only
  shared memory by itself. So wherever a program reads global memory that it wrote (`scratch`, `full`) a
  `tl.debug_barrier` stands between, bar.sync, which orders global memory among a block's threads; and another one
  before it is written anew. `out`, `mass`, `scale` are never read here, the next kernel comes after on the stream.
- A barrier in a branch is reached by all threads or none: branches hang on program ids, constants or scalars.
- Offsets that grow with B x T x S are 64-bit; those within one utterance (T x V, T x S) stay below 2**31.
- There are no atomics and no autotuning: the same input gives the same bits.
- Sizes that change from batch to batch (T, graphs, arcs) are not specialised, or each would be compiled anew.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

__all__ = ["INTERPRETED", "OutOfResources", "packed_kernel", "posterior_kernel", "shared_kernel"]


@triton.jit
def _times(
    x, table, scratch,
    ROWS: tl.constexpr, THIN: tl.constexpr, CHUNKS: tl.constexpr, LEVELS: tl.constexpr,
    CHUNK: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """A matrix laid out as `Gathers` times x: (OUT,), 0 from ROWS on. scratch (2 OUT,): 0 where no block goes."""
    thin_source, thin_weight, source_of, weight, level_of, target = table
    y = tl.zeros([OUT], x.dtype)
    if THIN > 0:
        at = tl.arange(0, OUT * THIN)
        column = tl.load(thin_source + at, mask=at < ROWS * THIN, other=0).to(tl.int32)
        each = tl.load(thin_weight + at, mask=at < ROWS * THIN, other=0.0) * tl.gather(x, column, 0)
        y += tl.sum(tl.reshape(each, [OUT, THIN]), 1)
    if CHUNKS > 0:
        arc, piece = tl.arange(0, CHUNK), tl.arange(0, CHUNK // 8)
        for c in range(CHUNKS):
            source = tl.load(source_of + c * CHUNK + arc).to(tl.int32)
            share = tl.load(weight + c * CHUNK + arc)
            level = tl.load(level_of + c * (CHUNK // 8) + piece).to(tl.int32)
            goal = tl.load(target + c * (CHUNK // 8) + piece).to(tl.int32)
            sums = tl.sum(tl.reshape(share * tl.gather(x, source, 0), [CHUNK // 8, 8]), 1)
            tl.store(scratch + goal, _by_block(sums, level, LEVELS, CHUNK // 8), mask=goal >= 0)
        tl.debug_barrier()  # all sums are written
        row = tl.arange(0, OUT)
        y += tl.load(scratch + row, mask=row < ROWS, other=0.0)
        y += tl.load(scratch + OUT + row, mask=row < ROWS, other=0.0)
        tl.debug_barrier()  # and read, before the next frame writes them
    return y


@triton.jit
def _by_block(sums, level, LEVELS: tl.constexpr, PIECES: tl.constexpr):
    """Sum of each piece's block of 2**level aligned pieces: sums, level (PIECES,) -> (PIECES,)."""
    total = sums
    for below in tl.static_range(LEVELS):
        pairs = tl.reshape(sums, [PIECES >> (below + 1), 2, 1 << below])
        sums = tl.reshape(tl.broadcast_to(tl.sum(pairs, 1, keep_dims=True), pairs.shape), [PIECES])
        total = tl.where(level > below, sums, total)
    return total


@triton.jit
def _run(
    p, length, label_of, own_of, start_of, end_of, leaking_of, into_of, inner, outer,
    out, mass, ending, scratch, V, stride,
    BACKWARD: tl.constexpr, LEAKY: tl.constexpr, SIZES: tl.constexpr,
    CHUNK: tl.constexpr, S: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """All frames of one utterance in one direction.

    p: emissions (T, V); out (T, stride): alpha, or beta without its own frame's emission; mass (T,); ending ().
    """
    state = tl.arange(0, S)
    kept = state < stride
    label, own = tl.load(label_of + state), tl.load(own_of + state)
    following = tl.load(start_of + state)
    if LEAKY:
        leaking, into = tl.load(leaking_of + state), tl.load(into_of + state)
    last = tl.maximum(length - 1, 0)
    emission = tl.load(p + (last * V if BACKWARD else 0) + label)
    for step in range(length):
        frame = last - step if BACKWARD else step
        x = following * emission
        total = tl.sum(x, 0)
        # the next frame's emissions are on their way while the arcs are summed
        ahead = tl.minimum(step + 1, last)
        emission = tl.load(p + (last - ahead if BACKWARD else ahead) * V + label)
        x = x / tl.maximum(total, 1e-37)
        tl.store(out + frame * stride + state, following if BACKWARD else x, mask=kept)
        tl.store(mass + frame, total)
        if not BACKWARD and step == last:
            tl.store(ending, tl.sum(x * tl.load(end_of + state), 0))
        hubs = _times(x, inner, scratch, SIZES[0], SIZES[1], SIZES[2], SIZES[3], CHUNK, E)
        following = own * x + _times(hubs, outer, scratch + 2 * E, SIZES[4], SIZES[5], SIZES[6], SIZES[7], CHUNK, S)
        if LEAKY:
            following += tl.sum(x * leaking, 0) * into


@triton.jit(do_not_specialize=["T"])
def shared_kernel(
    p, lengths, label, own, ends, leaking, into, ahead, back, out, mass, ending, scratch, T, V, stride,
    LEAKY: tl.constexpr, AHEAD: tl.constexpr, BACK: tl.constexpr,
    CHUNK: tl.constexpr, S: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Programs (B, 2): alpha of an utterance, then beta.

    p (B, T, V), ends, leaking, into (2, S), out (2, B, T, stride), mass (2, B, T), ending (B,): final mass of alpha.
    """
    utterance, direction = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + utterance)
    row = direction * tl.num_programs(0) + utterance
    p += utterance * T * V
    out += row * T * stride
    mass += row * T
    ending += utterance
    scratch += row * 2 * (E + S)
    if direction == 0:
        _run(p, length, label, own, ends, ends + S, leaking, into, ahead[0], ahead[1], out, mass, ending, scratch,
             V, stride, False, LEAKY, AHEAD, CHUNK, S, E)  # fmt: skip
    else:
        _run(p, length, label, own, ends + S, ends, leaking + S, into + S, back[0], back[1], out, mass, ending, scratch,
             V, stride, True, LEAKY, BACK, CHUNK, S, E)  # fmt: skip


@triton.jit
def _packed_run(
    p, length, states, label_of, start_of, final_of, arc_from, most_of, other_of, weight_of,
    out, full, scale_of, total_of, V, BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All frames of one utterance in one direction, in the log semiring.

    p: log-probabilities (T, V); out (T, states): alpha, or beta without its own frame's score, both less
    the log scale (T,); full (2, states): the last two frames with their scores; most_of: most arcs of a
    state in each block.
    """
    scale = tl.zeros([], tl.float64)
    shift = tl.zeros([], p.dtype.element_ty)
    for step in range(length):
        frame = length - 1 - step if BACKWARD else step
        here, before = full + (step % 2) * states, full + (1 - step % 2) * states
        best = tl.full([BLOCK], -1e30, p.dtype.element_ty)
        tl.store(scale_of + frame, scale)
        for low in range(0, states, BLOCK):
            state = low + tl.arange(0, BLOCK)
            inside = state < states
            score = tl.load(p + frame * V + tl.load(label_of + state, mask=inside, other=0))
            if step == 0:
                value = tl.load(start_of + state, mask=inside, other=float("-inf"))
            else:
                most = tl.load(most_of + low // BLOCK)
                value = _log_sum(state, inside, most, arc_from, other_of, weight_of, before, shift)
            tl.store(out + states.to(tl.int64) * frame + state, value if BACKWARD else value + score, mask=inside)
            tl.store(here + state, value + score, mask=inside)
            best = tl.maximum(best, value + score)
        tl.debug_barrier()  # the frame is written before the next one gathers from it
        top = tl.max(best, 0)
        shift = tl.where(top > -1e30, top, 0.0)
        scale += shift.to(tl.float64)
    if not BACKWARD:
        tl.store(total_of, scale + _log_end(full + (1 - length % 2) * states, final_of, states, shift, BLOCK))


@triton.jit
def _log_sum(state, inside, most, arc_from, other_of, weight_of, before, shift):
    """log of the sum over each state's arcs, at most `most`, of exp(before[other] - shift + weight)."""
    arc = tl.load(arc_from + state, mask=inside, other=0)
    end = tl.load(arc_from + state + 1, mask=inside, other=0)
    top = tl.full(state.shape, -1e30, before.dtype.element_ty)
    total = top * 0
    for _ in range(0, most, 4):  # four at a time, so that their loads overlap
        a = _arc(arc, end, other_of, weight_of, before, shift)
        b = _arc(arc + 1, end, other_of, weight_of, before, shift)
        c = _arc(arc + 2, end, other_of, weight_of, before, shift)
        d = _arc(arc + 3, end, other_of, weight_of, before, shift)
        higher = tl.maximum(top, tl.maximum(tl.maximum(a, b), tl.maximum(c, d)))
        four = tl.exp(a - higher) + tl.exp(b - higher) + tl.exp(c - higher) + tl.exp(d - higher)
        total = total * tl.exp(top - higher) + four
        top = higher
        arc += 4
    return top + tl.log(total)


@triton.jit
def _arc(arc, end, other_of, weight_of, before, shift):
    """Weight of a path through each arc; -inf where the state has no such arc."""
    there = arc < end
    value = tl.load(before + tl.load(other_of + arc, mask=there, other=0), mask=there, other=float("-inf"))
    return value - shift + tl.load(weight_of + arc, mask=there, other=0.0)


@triton.jit
def _log_end(values, final_of, states, shift, BLOCK: tl.constexpr):
    """log of the sum over all states of exp(values - shift + final)."""
    top = shift * 0 - 1e30
    total = shift * 0
    for low in range(0, states, BLOCK):
        state = low + tl.arange(0, BLOCK)
        value = tl.load(values + state, mask=state < states, other=float("-inf")) - shift
        value += tl.load(final_of + state, mask=state < states, other=0.0)
        higher = tl.maximum(top, tl.max(value, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(value - higher), 0)
        top = higher
    return top + tl.log(total)


@triton.jit(do_not_specialize=["T", "graphs", "arcs"])
def packed_kernel(
    p, lengths, graph_of, row_from, cell_from, state_from, block_from, label, start, arc_from, most, other, weight,
    out, full, scale, total, T, V, graphs, arcs, BLOCK: tl.constexpr,
):  # fmt: skip
    """Programs (B, 2) as in `shared_kernel`, each over the utterance's graph out of several that lie side by side.

    graph_of (B,). row_from, cell_from (B + 1,): where an utterance's states and its T x states cells begin in what
    is written: full (2, 2, rows), out (2, cells). state_from, block_from (graphs + 1,): where a graph's states and its
    blocks of states begin in what is read: label (S,), start (2, S), arc_from (2, S + 1), most (2, blocks); other,
    weight (2, arcs).
    """
    utterance, direction = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    batch = tl.num_programs(0)
    length = tl.load(lengths + utterance)
    graph = tl.load(graph_of + utterance)
    first = tl.load(state_from + graph)
    states = tl.load(state_from + graph + 1) - first
    all_states = tl.load(state_from + graphs)
    p += utterance * T * V
    label += first
    final = start + all_states + first
    start += direction * all_states + first
    arc_from += direction * (all_states + 1) + first
    most += direction * tl.load(block_from + graphs) + tl.load(block_from + graph)
    other += direction * arcs
    weight += direction * arcs
    out += direction * tl.load(cell_from + batch) + tl.load(cell_from + utterance)
    full += (direction * tl.load(row_from + batch) + tl.load(row_from + utterance)) * 2
    scale += (direction * batch + utterance) * T
    total += utterance
    if direction == 0:
        _packed_run(p, length, states, label, start, final, arc_from, most, other, weight, out, full, scale, total, V,
                    False, BLOCK)  # fmt: skip
    else:
        _packed_run(p, length, states, label, start, final, arc_from, most, other, weight, out, full, scale, total, V,
                    True, BLOCK)  # fmt: skip


@triton.jit(do_not_specialize=["T"], do_not_specialize_on_alignment=["beta"])
def posterior_kernel(
    alpha, beta, cell_from, stride_of, lengths, norm, run_from, start_of, count_of, label_of, last_of,
    posterior, T, V, LOG: tl.constexpr, FRAMES: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Programs (B, T / FRAMES): sums of alpha * beta over the states of each output into posterior (B, T, V).

    States of one output lie side by side, in runs of at most STATES: run_from (B, 2) says which are an
    utterance's, and each run where its states start, how many they are, their output, and whether it is that
    output's last. LOG: alpha and beta are logs, and norm (B, T) is taken from their sum.
    """
    utterance = tl.program_id(0).to(tl.int64)
    length, stride = tl.load(lengths + utterance), tl.load(stride_of + utterance)
    frame = tl.program_id(1) * FRAMES + tl.arange(0, FRAMES)
    inside = frame < length
    row = tl.load(cell_from + utterance) + frame.to(tl.int64) * stride
    column = tl.arange(0, STATES)
    posterior += (utterance * T + frame) * V
    if LOG:
        shift = tl.load(norm + utterance * T + frame, mask=inside, other=0.0)
    total = tl.zeros([FRAMES], alpha.dtype.element_ty)
    for run in range(tl.load(run_from + utterance * 2), tl.load(run_from + utterance * 2 + 1)):
        at = row[:, None] + tl.load(start_of + run) + column[None, :]
        there = inside[:, None] & (column < tl.load(count_of + run))[None, :]
        if LOG:
            both = tl.load(alpha + at, mask=there, other=float("-inf")) + tl.load(beta + at, mask=there, other=0.0)
            total += tl.sum(tl.exp(both - shift[:, None]), 1)
        else:
            total += tl.sum(tl.load(alpha + at, mask=there, other=0.0) * tl.load(beta + at, mask=there, other=0.0), 1)
        # each run of an output overwrites what the run before left, so the last leaves the whole sum
        tl.store(posterior + tl.load(label_of + run), total, mask=inside)
        total = tl.where(tl.load(last_of + run) != 0, 0.0, total)


INTERPRETED = not isinstance(shared_kernel, triton.JITFunction)  # on the CPU, by TRITON_INTERPRET=1
