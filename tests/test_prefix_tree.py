"""The tree of a batch's rows: every prefix once, every token found again, every node in its place."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl import prefix_tree
from rl.prefix_tree import PrefixTree, tree_of

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=9)


def as_arrays(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, np.int32) for row in rows]


def test_by_hand():
    tree = tree_of(as_arrays([[7, 8, 5, 5], [9], [7, 8, 4]]))
    # In dictionary order: 7 8 4, then 5 5 after 7 8, then 9.
    assert tree.ids_1N.tolist() == [[7, 8, 4, 5, 5, 9]]
    assert tree.positions_1N.tolist() == [[0, 1, 2, 2, 3, 0]]
    assert tree.before_N.tolist() == [6, 0, 1, 1, 3, 6]
    assert tree.num_rows_N.tolist() == [2, 2, 1, 1, 1, 1]
    assert tree.nodes_BT.tolist() == [[0, 1, 3, 4], [5, 0, 0, 0], [0, 1, 2, 0]]
    assert tree.window_NK(3).tolist() == [[6, 6, 0], [6, 0, 1], [0, 1, 2], [0, 1, 3], [1, 3, 4], [6, 6, 5]]


@given(ROWS)
def test_every_prefix_is_one_node(rows: list[list[int]]):
    tree = tree_of(as_arrays(rows))
    prefixes = {}
    for b, row in enumerate(rows):
        for t in range(len(row)):
            node = int(tree.nodes_BT[b, t])
            assert prefixes.setdefault(tuple(row[: t + 1]), node) == node
            assert tree.ids_1N[0, node] == row[t] and tree.positions_1N[0, node] == t
            assert tree.before_N[node] == (tree.nodes_BT[b, t - 1] if t else len(tree.before_N))
    assert sorted(prefixes.values()) == list(range(tree.ids_1N.shape[1]))
    for prefix, node in prefixes.items():
        assert tree.num_rows_N[node] == sum(tuple(row[: len(prefix)]) == prefix for row in rows)


def path(tree: PrefixTree, node: int) -> list[int]:
    """The node and all before it, the first one first."""
    found = []
    while node < len(tree.before_N):
        found.append(node)
        node = int(tree.before_N[node])
    return found[::-1]


@given(ROWS)
def test_every_node_asks_once_and_sees_what_is_before_it(rows: list[list[int]]):
    tree = tree_of(as_arrays(rows))
    queries, seen = [], []
    for lookup in tree.lookups:
        mask_BQK = lookup.mask_BQK()
        assert mask_BQK.any(dim=-1).all()  # nothing to see would be NaN
        queries += lookup.queries_BQ.flatten().tolist()
        seen += [keys[row].tolist() for keys, rows_QK in zip(lookup.keys_BK, mask_BQK, strict=True) for row in rows_QK]
    for node, answer in enumerate(tree.answers_N.tolist()):
        assert queries[answer] == node and seen[answer] == path(tree, node)


@given(ROWS, st.sampled_from([1, 3, 1000]), st.sampled_from([0, 100]))
def test_segments_go_through_every_path_in_order(rows: list[list[int]], fewest_saved: int, few: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "FEWEST_SAVED", fewest_saved)
        patch.setattr(prefix_tree, "FEW_NODES", few)
        tree = tree_of(as_arrays(rows))
    num = tree.ids_1N.shape[1]
    places = [node for part in tree.segments for node in part.nodes_SL.flatten().tolist()]
    assert [places[place] for place in tree.scanned_N.tolist()] == list(range(num))
    paths: list[list[int]] = [[]]
    for part in tree.segments:
        befores = [paths[before] for before in part.befores_S.tolist()]  # all of which are behind us
        for before, nodes in zip(befores, part.nodes_SL.tolist(), strict=True):
            paths.append([*before, *(node for node in nodes if node < num)])
            assert paths[-1] == path(tree, paths[-1][-1])
            assert sorted(nodes, key=lambda node: node == num) == nodes  # padded on the right


def test_openings_are_segments_where_that_saves_enough(monkeypatch):
    """All rows begin with 1 2; three and two of them share more."""
    rows = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [1, 2, 3, 4, 5, 8], [1, 2, 9, 9, 9, 1], [1, 2, 9, 9, 9, 2]]
    shapes = {}
    for fewest in (3, 6, 9, 11):
        monkeypatch.setattr(prefix_tree, "FEWEST_SAVED", fewest)
        shapes[fewest] = [tuple(part.nodes_SL.shape) for part in tree_of(as_arrays(rows)).segments]
    assert shapes == {3: [(1, 2), (2, 3), (5, 1)], 6: [(1, 2), (3, 4), (3, 1)], 9: [(3, 6), (3, 1)], 11: [(5, 6)]}


def test_a_chain_of_prefixes_is_cut_in_bounded_time_and_depth():
    rows = [[1] * length for length in range(1, 400)]
    tree = tree_of(as_arrays(rows))
    assert tree.ids_1N.shape == (1, 399)
    assert sum(part.nodes_SL.numel() for part in tree.segments) < 20_000


def test_rows_of_like_lengths_are_looked_up_together_and_others_apart():
    prompt = list(range(10, 210))
    tree = tree_of(as_arrays([[*prompt, *[row] * (20 + row)] for row in range(8)]))
    shapes = [(tuple(one.queries_BQ.shape), tuple(one.keys_BK.shape)) for one in tree.lookups]
    assert shapes == [((1, 220), (1, 220)), ((7, 27), (7, 227))]


@pytest.mark.parametrize("window", [1, 3])
def test_a_window_hides_what_is_far_before(window: int):
    (lookup,) = tree_of(as_arrays([[1, 2, 3, 4, 5]])).lookups
    expected = torch.ones(5, 5).tril().triu(1 - window).bool()
    assert torch.equal(lookup.mask_BQK(window)[0], expected)
