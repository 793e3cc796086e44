"""Elias-Fano: the code of k ascending class ids in a fixed number of bytes, close to the least that any code can take.

P. Elias, "Efficient storage and retrieval by content and address of static files" (J. ACM, 1974); R. Fano, "On the number
of bits required to implement an associative memory" (MIT, 1971); notation after S. Vigna, "Quasi-succinct indices" (WSDM,
2013). For k = 64 of 128,256 classes it takes 104 bytes, where 4 bytes an id take 256 and the bound log2(C choose k) is 95.

The code, for k ids 0 <= id_0 < id_1 < ... < id_(k-1) < universe:

- `low_bits` = floor(log2(universe / k)); `low_i` = id_i mod 2**low_bits, `high_i` = id_i >> low_bits.
- The code is one integer: the sum over i of `low_i << (i * low_bits)` and of `1 << (k * low_bits + high_i + i)`.
- So first come k fields of `low_bits` bits, then the high parts in unary: bit `high_i + i` is set, for every i.
- The unary part has k + ((universe - 1) >> low_bits) bits; the whole is rounded up to bytes, and unused bits are 0.
- The integer is stored little-endian: bit j of the code is bit j % 8 (counted from the least significant) of byte j // 8.
- It takes `packed_bytes(k, universe)` bytes whatever the ids are, so that positions can be found by multiplication.
- To read: the i-th set bit of the unary part is at `high_i + i`; id_i = high_i << low_bits | low_i.
- A code is valid if exactly k bits of the unary part and its padding are set, and the ids ascend below the universe.
- high_i never descends, whatever the bytes are, so that only equal high parts can hold ids out of order.
- `int.from_bytes(code, "little")` reads it in Python, `numpy.unpackbits(code, bitorder="little")` in numpy.

Shape legend: N positions, K ids, P bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def low_bits(k: int, universe: int) -> int:
    """Bits of an id that are stored as they are. Raises ValueError unless 1 <= k <= universe."""
    if not 1 <= k <= universe:
        raise ValueError(f"{k} distinct ids cannot be below {universe}")
    return (universe // k).bit_length() - 1


def packed_bytes(k: int, universe: int) -> int:
    """Bytes that k distinct ids below `universe` take."""
    low = low_bits(k, universe)
    return -(-(k * low + k + ((universe - 1) >> low)) // 8)


def pack(ids_NK: Tensor, universe: int) -> Tensor:
    """Ids (N, K), int64, ascending and distinct in each row and below `universe`, to bytes (N, P), uint8."""
    import torch

    positions, k = ids_NK.shape
    low = low_bits(k, universe)
    packed_NP = ids_NK.new_zeros((positions, packed_bytes(k, universe)), dtype=torch.uint8)
    order_K = torch.arange(k, device=ids_NK.device)
    # No two parts share a bit, so adding them to the bytes is setting them.
    fields_NK = (ids_NK & (1 << low) - 1) << order_K * low % 8
    first_byte_NK = (order_K * low // 8).expand(positions, k)
    for byte in range(_bytes_touched(low)):
        # Fields near the end of the low parts touch fewer bytes; what they would add further on is 0.
        target_NK = (first_byte_NK + byte).clamp_max(packed_NP.shape[1] - 1)
        packed_NP.scatter_add_(1, target_NK, (fields_NK >> 8 * byte & 255).to(torch.uint8))
    bit_NK = k * low + (ids_NK >> low) + order_K
    return packed_NP.scatter_add_(1, bit_NK >> 3, (1 << (bit_NK & 7)).to(torch.uint8))


def unpack(packed_NP: Tensor, k: int, universe: int) -> Tensor:
    """Bytes (N, P) to ids (N, K), int64, at least 0.

    Any bytes can be unpacked: a row whose unary part has other than k set bits gives only ids of at least `universe`. For
    the rest, a caller that does not trust the bytes checks that ids ascend strictly and stay below `universe`.
    """
    low = low_bits(k, universe)
    return _high_parts(packed_NP, k, universe) << low | _low_parts(packed_NP, k, low)


def _low_parts(packed_NP: Tensor, k: int, low: int) -> Tensor:
    import torch

    order_K = torch.arange(k, device=packed_NP.device)
    fields_NK = torch.zeros((len(packed_NP), k), dtype=torch.int64, device=packed_NP.device)
    for byte in range(_bytes_touched(low)):
        source_K = (order_K * low // 8 + byte).clamp_max(packed_NP.shape[1] - 1)
        # gather takes a quarter of the time of index_select along axis 1
        fields_NK |= packed_NP.gather(1, source_K.expand(len(packed_NP), k)).to(torch.int64) << 8 * byte
    return fields_NK >> order_K * low % 8 & (1 << low) - 1


def _high_parts(packed_NP: Tensor, k: int, universe: int) -> Tensor:
    import torch

    low = low_bits(k, universe)
    first_byte, skipped_bits = divmod(k * low, 8)
    eight = torch.arange(8, dtype=torch.uint8, device=packed_NP.device)
    bits_NPE = packed_NP[:, first_byte:].unsqueeze(-1) >> eight & 1
    unary_NU = bits_NPE.flatten(1)[:, skipped_bits:].to(torch.bool)
    damaged_N = unary_NU.sum(dim=1) != k
    if bool(damaged_N.any()):  # k set bits in every row, so that the places of all of them form a rectangle
        any_k_U = torch.arange(unary_NU.shape[1], device=packed_NP.device) < k
        unary_NU = torch.where(damaged_N.unsqueeze(1), any_k_U, unary_NU)
    high_NK = unary_NU.nonzero()[:, 1].view(len(packed_NP), k) - torch.arange(k, device=packed_NP.device)
    return high_NK.masked_fill_(damaged_N.unsqueeze(1), (universe >> low) + 1)


def _bytes_touched(low: int) -> int:
    """Bytes that a field of so many bits may lie in: it starts at any bit of the first."""
    return (low + 14) // 8 if low else 0
