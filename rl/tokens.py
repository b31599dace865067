"""What is known of each token of a prompt, a reply or a training row?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

COLUMN_TYPES: Mapping[str, DTypeLike] = {"logprob": np.float32, "version": np.int32}
"""Columns that every reply has."""


class TokensError(ValueError):
    """Arrays that do not describe the same tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Token ids and what is known of each: read-only arrays of one length T.

    A column is an array [T, ...] by name. The engine gives `logprob` (float32; nats, of the distribution that was
    sampled from, after temperature) and `version` (int32; the policy version that sampled the token), and more if an
    algorithm needs more (`rl.engine.columns`). Where `sampled` is False a column means nothing.
    """

    ids: np.ndarray
    """int32 [T]"""
    sampled: np.ndarray
    """bool [T]; True where the policy sampled the token: these alone enter the loss. Prompts, tool results and tokens
    that the thinking budget forced are not sampled."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def make(cls, ids: ArrayLike, sampled: ArrayLike, columns: Mapping[str, ArrayLike]) -> "Tokens":
        """Tokens from anything array-like. Raises `TokensError` where the lengths differ."""
        arrays = {name: _read_only(values, COLUMN_TYPES.get(name)) for name, values in columns.items()}
        tokens = cls(_read_only(ids, np.int32), _read_only(sampled, np.bool_), arrays)
        lengths = {"ids": len(tokens.ids), "sampled": len(tokens.sampled)}
        lengths |= {name: len(values) for name, values in arrays.items()}
        if len(set(lengths.values())) != 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise TokensError(f"arrays of tokens must have one length, got {told}")
        return tokens

    @classmethod
    def unsampled(cls, ids: ArrayLike) -> "Tokens":
        """Tokens that the policy did not sample, without columns."""
        array = _read_only(ids, np.int32)
        return cls(array, _read_only(np.zeros(len(array), np.bool_), np.bool_))

    @classmethod
    def joined(cls, parts: Sequence["Tokens"]) -> "Tokens":
        """All parts one after the other; a column that a part lacks is 0 there."""
        likes = {name: column for part in parts for name, column in part.columns.items()}
        return cls(
            _read_only(np.concatenate([part.ids for part in parts])),
            _read_only(np.concatenate([part.sampled for part in parts])),
            {
                name: _read_only(np.concatenate([part._column(name, like) for part in parts]))
                for name, like in likes.items()
            },
        )

    def _column(self, name: str, like: np.ndarray) -> np.ndarray:
        column = self.columns.get(name)
        return np.zeros((len(self), *like.shape[1:]), like.dtype) if column is None else column

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokens):
            return NotImplemented
        return (
            np.array_equal(self.ids, other.ids)
            and np.array_equal(self.sampled, other.sampled)
            and self.columns.keys() == other.columns.keys()
            and all(np.array_equal(column, other.columns[name]) for name, column in self.columns.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as one run of bytes: between processes, the overhead of an array is that of a hundred tokens."""
        arrays = (self.ids, self.sampled, *self.columns.values())
        kinds = tuple((array.dtype.str, array.shape) for array in arrays)
        return _unpacked, (tuple(self.columns), kinds, b"".join([array.tobytes() for array in arrays]))


def _read_only(values: ArrayLike, dtype: DTypeLike | None = None) -> np.ndarray:
    array = np.asarray(values, dtype)
    if array.flags.writeable:
        array = array.view()  # whoever made the array may go on writing to it; no reader of tokens can
        array.setflags(write=False)
    return array


def _unpacked(names: tuple[str, ...], kinds: Sequence[tuple[str, tuple[int, ...]]], data: bytes) -> Tokens:
    """What `Tokens.__reduce__` packed; the arrays are views of the bytes, and so read-only."""
    arrays: list[np.ndarray] = []
    start = 0
    for dtype, shape in kinds:
        array = np.frombuffer(data, dtype, math.prod(shape), start)
        start += array.nbytes
        arrays.append(array if len(shape) == 1 else array.reshape(shape))
    return Tokens(arrays[0], arrays[1], dict(zip(names, arrays[2:], strict=True)))
