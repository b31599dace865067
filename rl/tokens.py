"""How are tokens stored: which columns describe each token of a prompt, a reply or a training row?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

COLUMN_TYPES: Mapping[str, DTypeLike] = {"logprob": np.float32, "version": np.int32}
"""Columns that every reply has."""

ADVANTAGE = "advantage"
"""Name of the column of rows in which tokens have different advantages."""

TEACHER = "teacher_logprob"
"""Name of the column of a teacher's logprobs, in nats at temperature 1 (`rl.rollouts.teachers`)."""

ROUTES = "routed_experts"
"""Name of the column of the experts that the engine chose, [T, mixture layers, experts a token]; uint8 up to 256
experts, else uint16. The experts of a token differ, so zeros mean that its choice is not known."""

CONTEXT_COLUMNS = frozenset({ROUTES})
"""Columns that prompts and forced tokens have too."""

OUT_OF_BAND_TOKENS = 2048
"""From this length on, the copies that a buffer of its own saves cost more than the buffer."""


class TokensError(ValueError):
    """Arrays do not have one length, so they do not describe the same tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Token ids and named columns: read-only arrays of one length T.

    A column is an array [T, ...]. The engine returns `logprob` (float32; nats, of the sampled distribution after
    temperature), `version` (int32; the policy version that sampled the token), and the columns that an algorithm needs
    (`rl.engine.columns`). Values of tokens that are not `sampled` are undefined, but for `CONTEXT_COLUMNS`.
    """

    ids: np.ndarray
    """int32 [T]"""
    sampled: np.ndarray
    """bool [T]; True if the policy sampled the token. Only sampled tokens enter the loss. Prompts, tool results and
    tokens that the thinking budget forced are not sampled."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def make(cls, ids: ArrayLike, sampled: ArrayLike, columns: Mapping[str, ArrayLike]) -> "Tokens":
        """Tokens from array-like values. Raises `TokensError` if the lengths differ."""
        arrays = {name: _read_only(values, COLUMN_TYPES.get(name)) for name, values in columns.items()}
        tokens = cls(_read_only(ids, np.int32), _read_only(sampled, np.bool_), arrays)
        lengths = {"ids": len(tokens.ids), "sampled": len(tokens.sampled)}
        lengths |= {name: len(values) for name, values in arrays.items()}
        if len(set(lengths.values())) != 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise TokensError(f"arrays of tokens must have one length, got {told}")
        return tokens

    @classmethod
    def unsampled(cls, ids: ArrayLike, columns: Mapping[str, ArrayLike] | None = None) -> "Tokens":
        """Tokens that the policy did not sample. Raises as `make`."""
        array = _read_only(ids, np.int32)
        return cls.make(array, np.zeros(len(array), np.bool_), columns or {})

    @classmethod
    def joined(cls, parts: Sequence["Tokens"]) -> "Tokens":
        """The parts concatenated; a column that a part lacks is 0 there."""
        likes = {name: column for part in parts for name, column in part.columns.items()}
        return cls(
            _read_only(np.concatenate([part.ids for part in parts])),
            _read_only(np.concatenate([part.sampled for part in parts])),
            {
                name: _read_only(np.concatenate([part._column(name, like) for part in parts]))
                for name, like in likes.items()
            },
        )

    def cut(self, lengths: Iterable[int]) -> list["Tokens"]:
        """Consecutive pieces of these lengths, as views: the inverse of `joined`, if no part lacked a column."""
        return [
            Tokens(
                self.ids[start:end],
                self.sampled[start:end],
                {name: column[start:end] for name, column in self.columns.items()},
            )
            for start, end in pairwise(accumulate(lengths, initial=0))
        ]

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
        """Pickle short arrays as one byte string: pickling an array costs as much as a hundred tokens. Long arrays are
        pickled by numpy, out of the stream, so that Ray copies them once and not three times.
        """
        if len(self) >= OUT_OF_BAND_TOKENS:
            return Tokens.make, (self.ids, self.sampled, self.columns)
        arrays = (self.ids, self.sampled, *self.columns.values())
        kinds = tuple((array.dtype.str, array.shape) for array in arrays)
        return _unpacked, (tuple(self.columns), kinds, b"".join([array.tobytes() for array in arrays]))


def _read_only(values: ArrayLike, dtype: DTypeLike | None = None) -> np.ndarray:
    array = np.asarray(values, dtype)
    if array.flags.writeable:
        array = array.view()  # the array's owner may still write to it; readers of these tokens cannot
        array.setflags(write=False)
    return array


def _unpacked(names: tuple[str, ...], kinds: Sequence[tuple[str, tuple[int, ...]]], data: bytes) -> Tokens:
    """The inverse of `Tokens.__reduce__`. The arrays are views of the bytes, so they are read-only."""
    arrays: list[np.ndarray] = []
    start = 0
    for dtype, shape in kinds:
        array = np.frombuffer(data, dtype, math.prod(shape), start)
        start += array.nbytes
        arrays.append(array if len(shape) == 1 else array.reshape(shape))
    return Tokens(arrays[0], arrays[1], dict(zip(names, arrays[2:], strict=True)))
