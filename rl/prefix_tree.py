"""Which tokens of a batch's rows follow the same tokens? They have the same hidden states, so one of them is enough.

Rows of a group begin with the same prompt. A tree of their tokens holds each prefix once, whatever rows share: whole
prompts, openings of conversations, replies that begin alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PADDED_BY_REAL = 1.3
"""Rows are looked up together while that costs at most so many times the work of each alone."""
FEW = 4096
"""Query-key pairs of a head below which the work of a row does not matter."""
FEWEST_SAVED = 32
"""Nodes that a segment of a recurrent layer must save, because each level of segments is a scan of its own."""
FEW_NODES = 128
"""Of padding, which do not matter beside the cost of another scan."""


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """Queries of some rows, and the keys that they may see. All are nodes of the tree; padding is node 0."""

    queries_BQ: Tensor
    keys_BK: Tensor
    """In the order of each row."""
    query_positions_BQ: Tensor
    """Place of each query in its row; -1 for padding."""

    def mask_BQK(self, window: int | None = None) -> Tensor:
        """bool; True where a query may see a key: not one behind it, nor one that is `window` or more before it."""
        keys_K = torch.arange(self.keys_BK.shape[1], device=self.keys_BK.device)
        # Padding sees the first key, because the softmax over nothing is not a number.
        queries_BQ1 = self.query_positions_BQ.clamp(min=0)[..., None]
        mask_BQK = keys_K <= queries_BQ1
        return mask_BQK if window is None else mask_BQK & (keys_K > queries_BQ1 - window)


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Paths through the tree that a recurrent layer goes through together, each from the state that another left."""

    nodes_SL: Tensor
    """Padded on the right with N, one behind the last node."""
    befores_S: Tensor
    """Number of the segment before each, counted over all segments from 1 on; 0 for the beginning of a row."""


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """The rows that have nodes of their own, without padding, one after the other.

    The queries of a row are its last nodes, those that no row before it has. Over all rows they are the nodes in order.
    """

    keys_K: Tensor
    """The nodes of each row, those that it shares included."""
    query_ends: Tensor
    """int32 [rows + 1], beginning with 0: behind the last query of each row."""
    key_ends: Tensor
    """int32 [rows + 1], beginning with 0: behind the last key of each row."""
    most_queries: int
    """Of a row."""
    most_keys: int


@dataclass(frozen=True, slots=True, eq=False)
class PrefixTree:
    """The tokens of a batch's rows, each prefix once. A node is a token with all tokens before it."""

    ids_1N: Tensor
    positions_1N: Tensor
    before_N: Tensor
    """The node before each node; N for the first of a row."""
    num_rows_N: Tensor
    """Rows in which each node stands."""
    nodes_BT: Tensor
    """The node of each token of each row; 0 for padding."""
    lookups: tuple[Lookup, ...]
    """Each node is a query in one of them."""
    answers_N: Tensor
    """Place of each node among the queries of all lookups, padding included, one after the other."""
    sequences: Sequences
    """The same as the lookups, for kernels that need no padding."""
    segments: tuple[Segments, ...]
    """Every node is in one of them, or in several; those before a segment come before it."""
    scanned_N: Tensor
    """Place of each node in the segments, padding included, one after the other."""

    def window_NK(self, num: int) -> Tensor:
        """Each node after the `num` - 1 before it; N where there are not as many."""
        before = functional.pad(self.before_N, (0, 1), value=len(self.before_N))
        window = [torch.arange(len(self.before_N), device=before.device)]
        for _ in range(num - 1):
            window.append(before[window[-1]])
        return torch.stack(window[::-1], dim=1)

    def to(self, device: torch.device) -> "PrefixTree":
        return _moved(self, device)


def _moved(part: Any, device: torch.device) -> Any:
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, tuple):
        return tuple(_moved(one, device) for one in part)
    if isinstance(part, int):
        return part
    return type(part)(*(_moved(getattr(part, one.name), device) for one in fields(part)))


def taken(nodes: Tensor, places: Tensor) -> Tensor:
    """The nodes [N, ...] at places [...]."""
    flat = nodes.reshape(len(nodes), -1)
    # On a CPU an embedding has the quicker gradient; on a GPU that sorts the places.
    found = flat.index_select(0, places.flatten()) if flat.is_cuda else functional.embedding(places, flat)
    return found.view(*places.shape, *nodes.shape[1:])


def num_shared(row: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    length = min(len(row), len(other))
    differs = row[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def dictionary_order(row: np.ndarray) -> bytes:
    """A key that sorts rows of token ids as words in a dictionary."""
    return row.astype(">u4").tobytes()


def tree_of(rows: Sequence[np.ndarray]) -> PrefixTree:
    """The tree of rows of token ids, in any order; none may be empty."""
    # In dictionary order a row shares most with the row before it.
    order = sorted(range(len(rows)), key=lambda b: dictionary_order(rows[b]))
    starts = [0, *(num_shared(rows[b], rows[before]) for before, b in pairwise(order))]
    num = sum(len(rows[b]) - start for b, start in zip(order, starts, strict=True))
    nodes_BT = np.zeros((len(rows), max(map(len, rows))), np.int64)
    ids_N, positions_N, before_N = (np.empty(num, np.int64) for _ in range(3))
    first = 0
    for i, (b, start) in enumerate(zip(order, starts, strict=True)):
        nodes_BT[b, :start] = nodes_BT[order[i - 1], :start]
        new = np.arange(first, first + len(rows[b]) - start)
        nodes_BT[b, start : len(rows[b])] = new
        ids_N[new], positions_N[new] = rows[b][start:], np.arange(start, len(rows[b]))
        before_N[new] = new - 1
        if len(new):
            before_N[new[0]] = nodes_BT[b, start - 1] if start else num
        first += len(new)
    nodes = [nodes_BT[b, : len(rows[b])] for b in order]
    with_new = [(one, start) for one, start in zip(nodes, starts, strict=True) if start < len(one)]
    lookups = tuple(map(_lookup, _cut(with_new)))
    queries = [np.where(one.query_positions_BQ.numpy() >= 0, one.queries_BQ.numpy(), num) for one in lookups]
    segments = tuple(_segments(nodes, starts, num))
    return PrefixTree(
        ids_1N=torch.from_numpy(ids_N)[None],
        positions_1N=torch.from_numpy(positions_N)[None],
        before_N=torch.from_numpy(before_N),
        num_rows_N=torch.from_numpy(np.bincount(np.concatenate(nodes), minlength=num)),
        nodes_BT=torch.from_numpy(nodes_BT),
        lookups=lookups,
        answers_N=_places(queries, num),
        sequences=_sequences(with_new),
        segments=segments,
        scanned_N=_places([one.nodes_SL.numpy() for one in segments], num),
    )


def _places(parts: Sequence[np.ndarray], num: int) -> Tensor:
    """Where each node stands in the parts, one after the other, where `num` stands for padding. Once, or the last."""
    flat = np.concatenate([part.ravel() for part in parts])
    places_N = np.empty(num + 1, np.int64)
    places_N[flat] = np.arange(len(flat))
    return torch.from_numpy(places_N[:num])


Nodes = np.ndarray
"""Of one row."""


def _cut(new: Sequence[tuple[Nodes, int]]) -> Iterator[list[tuple[Nodes, int]]]:
    """Rows, with the places where their new nodes begin, that are looked up together."""
    part: list[tuple[Nodes, int]] = []
    real = most_keys = 0
    for nodes, start in sorted(new, key=lambda one: (one[1] - len(one[0]), -len(one[0]))):
        num_keys, num_queries = len(nodes), len(nodes) - start
        most_queries = len(part[0][0]) - part[0][1] if part else num_queries
        padded = (len(part) + 1) * max(most_keys, num_keys) * most_queries
        if part and padded > PADDED_BY_REAL * (real + max(FEW, num_keys * num_queries)):
            yield part
            part, real, most_keys = [], 0, 0
        part.append((nodes, start))
        real, most_keys = real + max(FEW, num_keys * num_queries), max(most_keys, num_keys)
    if part:
        yield part


def _lookup(part: Sequence[tuple[Nodes, int]]) -> Lookup:
    queries = _padded([nodes[start:] for nodes, start in part], 0)
    positions = _padded([np.arange(start, len(nodes)) for nodes, start in part], -1)
    return Lookup(queries, _padded([nodes for nodes, _ in part], 0), positions)


def _sequences(part: Sequence[tuple[Nodes, int]]) -> Sequences:
    num_keys = [len(nodes) for nodes, _ in part]
    num_queries = [len(nodes) - start for nodes, start in part]
    query_ends, key_ends = (
        torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)) for lengths in (num_queries, num_keys)
    )
    keys = torch.from_numpy(np.concatenate([nodes for nodes, _ in part]))
    return Sequences(keys, query_ends, key_ends, max(num_queries), max(num_keys))


def _segments(nodes: Sequence[Nodes], starts: Sequence[int], num: int) -> Iterator[Segments]:
    """`nodes` in dictionary order, each with how many it shares with the row before it."""
    level = [(0, len(nodes), 0, 0)]
    num_segments = 0
    while level:
        cuts = _level(level, nodes, starts)
        level = []
        for part in _cut_segments(sorted(cuts, key=lambda cut: cut.begin - cut.end)):
            yield Segments(
                _padded([nodes[cut.first][cut.begin : cut.end] for cut in part], num),
                torch.tensor([cut.before for cut in part]),
            )
            for number, cut in enumerate(part, num_segments + 1):
                level += [(first, last, cut.end, number) for first, last in cut.rests]
            num_segments += len(part)


class _Cut(NamedTuple):
    """Nodes `begin` to `end` of row `first`, and the runs of rows that go on from there."""

    first: int
    begin: int
    end: int
    before: int
    rests: list[tuple[int, int]]


def _level(runs: list[tuple[int, int, int, int]], nodes: Sequence[Nodes], starts: Sequence[int]) -> list[_Cut]:
    """The next segments of runs of rows (first, behind the last, nodes that are done, segment before).

    What rows share beyond that becomes a segment if that saves enough; else the run falls apart where it shares least.
    """
    found = []
    while runs:
        first, last, begin, before = runs.pop()
        if last - first == 1:
            if begin < len(nodes[first]):
                found.append(_Cut(first, begin, len(nodes[first]), before, []))
            continue
        shared = min(starts[first + 1 : last])
        splits = [first, *(row for row in range(first + 1, last) if starts[row] == shared), last]
        rests = list(pairwise(splits))
        if (last - first - 1) * (shared - begin) >= FEWEST_SAVED:
            found.append(_Cut(first, begin, shared, before, rests))
        else:
            runs += [(one, behind, begin, before) for one, behind in rests]
    return found


def _cut_segments(cuts: Sequence[_Cut]) -> Iterator[list[_Cut]]:
    """Longest first, cut where padding would cost too much."""
    part: list[_Cut] = []
    real = 0
    for cut in cuts:
        length = cut.end - cut.begin
        if part and (len(part) + 1) * (part[0].end - part[0].begin) > PADDED_BY_REAL * (real + length) + FEW_NODES:
            yield part
            part, real = [], 0
        part.append(cut)
        real += length
    if part:
        yield part


def _padded(rows: Sequence[np.ndarray], value: int) -> Tensor:
    """Stacked, padded on the right."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), value, np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(padded)
