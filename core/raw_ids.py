"""Raw ids as bytes of memory-mapped files, with a lookup from an id to its place: millions of ids without an object for each.

A file of ids is a safetensors file with the tensors

- `offsets` int64 [n + 1] and `text` uint8: id i is the UTF-8 text of the bytes [offsets[i], offsets[i + 1]);
- `hashes` int64 [n], ascending, and `places` int32 [n]: the hash of each id, and which id it is of; equal hashes by ascending place.

An id is found by binary search for its hash, and by comparing bytes with each id of the same hash, so that collisions do no harm. The hash
folds SplitMix64 (`core/random.py`) over the number of bytes and then over the bytes, eight at a time as little-endian integers, the last
ones filled up with zeros.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Union, overload

import numpy as np
import torch
from torch import Tensor

from .random import further_bits, random_bits
from .tensor_file import tensor_file

if TYPE_CHECKING:
    import pyarrow as pa

IDS_A_PIECE = 1 << 18  # that are hashed, looked up, or made strings at a time
IDS_A_SORT = 1 << 20  # that are sorted at a time, about
BIN_BITS = 12  # leading bits of hashes by which they are laid out before they are sorted
WORD = 8  # bytes that are hashed at a time
MASKS = np.array([(1 << 8 * num_bytes) - 1 for num_bytes in range(WORD + 1)], np.uint64)  # that keep a word's first bytes

IdChunks = Callable[[], Iterable["pa.Array"]]  # gives all ids in order, a chunk of strings at a time; every call begins anew
Ids = Union[Sequence[str], "pa.Array", IdChunks]


def id_pieces(ids: Ids) -> Iterator["pa.Array"]:
    """Yields ids in order as large strings, `IDS_A_PIECE` at a time, and the rest at the end, whatever chunks they come in."""
    import pyarrow as pa

    chunks = ids() if callable(ids) else [ids if isinstance(ids, pa.Array) else pa.array(list(ids), pa.large_string())]
    held = pa.array([], pa.large_string())
    for chunk in chunks:
        whole = chunk.cast(pa.large_string())
        held = pa.concat_arrays([held, whole]) if len(held) else whole
        full = len(held) - len(held) % IDS_A_PIECE
        for first in range(0, full, IDS_A_PIECE):
            yield held[first : first + IDS_A_PIECE]
        held = held[full:]
    if len(held):
        yield held


def hash_ids(ids: "pa.Array") -> np.ndarray:
    """Computes the hashes of ids, large strings or their bytes: int64 [n]. The module's docstring defines them."""
    offsets, text = _bytes_of(ids)
    lengths, padded = np.diff(offsets), np.concatenate([text, np.zeros(WORD, np.uint8)])
    words = np.ndarray(len(text) + 1, "<u8", padded, strides=(1,))  # a word for each byte that it may begin with
    hashes, rows, done = random_bits(torch.from_numpy(lengths)).numpy(), np.arange(len(ids)), 0
    while True:
        rows = rows[lengths[rows] > done]
        if not len(rows):
            return hashes
        own = words[offsets[rows] + done] & MASKS[np.minimum(lengths[rows] - done, WORD)]
        hashes[rows] = further_bits(torch.from_numpy(hashes[rows]), torch.from_numpy(own.view(np.int64))).numpy()
        done += WORD


def _bytes_of(ids: "pa.Array") -> tuple[np.ndarray, np.ndarray]:
    """Returns offsets, int64 [n + 1] from 0, and the bytes of ids, large strings or large binaries."""
    if not len(ids):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    _, offsets, data = ids.buffers()
    ends = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    text = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return ends - ends[0], text[ends[0] : ends[-1]]


def write_ids(path: Path, ids: Ids) -> None:
    """Writes a file of ids, in memory that does not grow with their number; it goes over them twice.

    Args:
        path: A local file.
        ids: All raw ids in order: distinct, less than 2**31.
    """
    count = num_bytes = 0
    bins = np.zeros((1 << BIN_BITS) + 1, np.int64)  # at first the number of hashes in the bin before, then where each bin begins
    for piece in id_pieces(ids):
        count, num_bytes = count + len(piece), num_bytes + len(_bytes_of(piece)[1])
        bins[1:] += np.bincount(_bin_of(hash_ids(piece)), minlength=1 << BIN_BITS)
    bins = bins.cumsum()
    shapes = {
        "offsets": ("int64", (count + 1,)),
        "hashes": ("int64", (count,)),
        "places": ("int32", (count,)),
        "text": ("uint8", (num_bytes,)),
    }
    with tensor_file(path, shapes) as out:
        _fill(ids, bins[:-1].copy(), **out)
        _sort_bins(bins, out["hashes"], out["places"])


def _bin_of(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> (64 - BIN_BITS)) + (1 << (BIN_BITS - 1))


def _fill(ids: Ids, begins: np.ndarray, offsets: np.ndarray, hashes: np.ndarray, places: np.ndarray, text: np.ndarray) -> None:
    """Fills the tensors of a file of ids, the hashes by bins: each bin at its place, and within it in the order of the ids.

    Args:
        ids: All of them.
        begins: Where the next hash of each bin goes; changed in place.
        offsets, hashes, places, text: The tensors.
    """
    first = end = 0
    for piece in id_pieces(ids):
        own_offsets, own_text = _bytes_of(piece)
        offsets[first + 1 : first + len(piece) + 1] = own_offsets[1:] + end
        text[end : end + len(own_text)] = own_text
        own_hashes = hash_ids(piece)
        own_bins = _bin_of(own_hashes)
        order = np.argsort(own_bins, kind="stable")
        counts = np.bincount(own_bins, minlength=len(begins))
        starts = counts.cumsum() - counts
        target = np.arange(len(piece)) + (begins - starts)[own_bins[order]]
        hashes[target], places[target] = own_hashes[order], first + order
        begins += counts
        first, end = first + len(piece), end + len(own_text)


def _sort_bins(bins: np.ndarray, hashes: np.ndarray, places: np.ndarray) -> None:
    """Sorts hashes that are in their bins, a run of bins at a time; equal ones stay in order. `bins` says where each bin begins."""
    begin = 0
    while begin < len(hashes):
        end = int(bins[np.searchsorted(bins, begin + IDS_A_SORT, "right") - 1])
        end = end if end > begin else int(bins[np.searchsorted(bins, begin, "right")])  # one bin that is larger
        order = np.argsort(hashes[begin:end], kind="stable")
        hashes[begin:end], places[begin:end] = hashes[begin:end][order], places[begin:end][order]
        begin = end


@dataclass(frozen=True)
class _Part:
    """Holds some ids with their lookup.

    Attributes:
        array: The ids, large strings.
        hashes, places: As in a file of ids.
    """

    array: "pa.Array"
    hashes: np.ndarray
    places: np.ndarray

    @staticmethod
    def of(array: "pa.Array") -> "_Part":
        hashes = hash_ids(array)
        order = np.argsort(hashes, kind="stable")
        return _Part(array, hashes[order], order)

    def find(self, ids: "pa.Array", wanted: np.ndarray) -> np.ndarray:
        """Looks up ids, large binaries, by their hashes, ascending int64 [n]; returns places, int64 [n], -1 where an id is not here."""
        import pyarrow as pa
        import pyarrow.compute as pc

        known = self.array.view(pa.large_binary())
        found, at, left = np.full(len(ids), -1), np.searchsorted(self.hashes, wanted), np.arange(len(ids))
        while True:
            left = left[at[left] < len(self.hashes)]
            left = left[self.hashes[at[left]] == wanted[left]]
            if not len(left):
                return found
            places = self.places[at[left]].astype(np.int64)
            is_same = pc.equal(known.take(pa.array(places)), ids.take(pa.array(left))).to_numpy(zero_copy_only=False)
            found[left[is_same]] = places[is_same]
            left = left[~is_same]
            at[left] += 1  # another id of the same hash may be the one


class RawIds(Sequence[str]):
    """Raw ids by index, a sequence of strings that makes them when it is asked; it finds the index of an id, too.

    Args:
        parts: The ids, one part after the other.
    """

    def __init__(self, parts: "Sequence[_Part]") -> None:
        self._parts = parts
        self._begins = np.cumsum([0, *(len(part.array) for part in parts)])

    @staticmethod
    def of(ids: Ids) -> "RawIds":
        """Holds ids in memory, at some 12 bytes each beside their text."""
        import pyarrow as pa

        return RawIds([_Part.of(pa.concat_arrays([pa.array([], pa.large_string()), *id_pieces(ids)]))])

    @staticmethod
    def open(path: Path) -> "RawIds":
        """Opens a file of ids, which is verified, memory-mapped."""
        import pyarrow as pa
        from safetensors.torch import load_file

        tensors = {name: tensor.numpy() for name, tensor in load_file(str(path)).items()}
        buffers = pa.py_buffer(tensors["offsets"]), pa.py_buffer(tensors["text"])
        return RawIds([_Part(pa.LargeStringArray.from_buffers(len(tensors["hashes"]), *buffers), tensors["hashes"], tensors["places"])])

    def followed_by(self, ids: Ids) -> "RawIds":
        """Returns these ids and further ones after them."""
        return RawIds([*self._parts, *RawIds.of(ids)._parts])

    def __len__(self) -> int:
        return int(self._begins[-1])

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            places = range(len(self))[at]
            ids: list[str] = self.take(np.arange(places.start, places.stop, places.step)).to_pylist()
            return ids
        return str(self.take(np.array([range(len(self))[at]]))[0].as_py())

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(piece.to_pylist() for part in self._parts for piece in id_pieces(part.array))

    def __contains__(self, raw: object) -> bool:
        return isinstance(raw, str) and int(self.find([raw])[0]) >= 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(own == its for own, its in zip(self, other))

    def __repr__(self) -> str:
        return f"RawIds({len(self)} ids)"

    def take(self, places: np.ndarray) -> "pa.Array":
        """Returns the ids at places, int64 [n], as large strings."""
        import pyarrow as pa

        if len(self._parts) == 1:
            return self._parts[0].array.take(pa.array(places))
        of_parts, taken, rows = np.searchsorted(self._begins, places, "right") - 1, [], []
        for number, part in enumerate(self._parts):
            rows.append(np.flatnonzero(of_parts == number))
            taken.append(part.array.take(pa.array(places[rows[-1]] - self._begins[number])))
        return pa.concat_arrays(taken).take(pa.array(np.argsort(np.concatenate(rows))))

    def find(self, ids: Union[Sequence[str], "pa.Array"]) -> Tensor:
        """Looks up the index of each of some ids: int64 [n], -1 where there is no such id."""
        found = [self._find(piece) for piece in _binaries(ids)]
        return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *found]))

    def _find(self, ids: "pa.Array") -> np.ndarray:
        import pyarrow as pa

        hashes = hash_ids(ids)
        order = np.argsort(hashes)
        ids, hashes, found = ids.take(pa.array(order)), hashes[order], np.full(len(ids), -1)
        for begin, part in zip(self._begins, self._parts):
            here = part.find(ids, hashes)
            found[order] = np.where(here >= 0, here + begin, found[order])
        return found


def _binaries(ids: Union[Sequence[str], "pa.Array"]) -> Iterator["pa.Array"]:
    """Yields the bytes of ids a piece at a time. Text that is no UTF-8, which no id is, gives bytes that no id has."""
    import pyarrow as pa

    if isinstance(ids, pa.Array):
        for piece in id_pieces(ids):
            yield piece.view(pa.large_binary())
        return
    for first in range(0, len(ids), IDS_A_PIECE):
        yield pa.array([raw.encode("utf-8", "surrogatepass") for raw in ids[first : first + IDS_A_PIECE]], pa.large_binary())
