"""NumPy arrays to and from the contract's `Tensor` and `BitArray`. Imports no Qiskit."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cadenza.v1.result_pb2 import BitArray
from cadenza.v1.tensor_pb2 import (
    DTYPE_BOOL,
    DTYPE_COMPLEX128,
    DTYPE_FLOAT32,
    DTYPE_FLOAT64,
    DTYPE_INT32,
    DTYPE_INT64,
    DTYPE_UINT8,
    Dtype,
    Tensor,
)

AXES_MAX: Final = 32
"""Axes of a `Tensor`, by the contract."""

_DTYPES: Final[dict["Dtype.ValueType", np.dtype[Any]]] = {
    DTYPE_FLOAT64: np.dtype("<f8"),
    DTYPE_FLOAT32: np.dtype("<f4"),
    DTYPE_INT64: np.dtype("<i8"),
    DTYPE_INT32: np.dtype("<i4"),
    DTYPE_UINT8: np.dtype("u1"),
    DTYPE_BOOL: np.dtype("?"),
    DTYPE_COMPLEX128: np.dtype("<c16"),
}
_CODES: Final = {dtype.name: code for code, dtype in _DTYPES.items()}
_CODES_AT_ONCE: Final = {dtype: code for code, dtype in _DTYPES.items()}
"""NumPy puts a name together anew each time that it is asked for."""


def tensor_from_array(values: ArrayLike) -> Tensor:
    """The `Tensor` that holds `values`, of any shape. Raises `ValueError` for element types that no `Dtype` names."""
    array = np.asarray(values)
    code = _CODES_AT_ONCE.get(array.dtype) or _CODES.get(array.dtype.name)
    if code is None:
        raise ValueError(f"arrays of {array.dtype} cannot be sent: convert to one of {', '.join(sorted(_CODES))}")
    if array.ndim > AXES_MAX:
        raise ValueError(f"the array has {array.ndim} axes: at most {AXES_MAX} can be sent")
    little_endian = array.astype(_DTYPES[code], copy=False)
    return Tensor(dtype=code, shape=array.shape, data=little_endian.tobytes())


def array_from_tensor(tensor: Tensor) -> NDArray[Any]:
    """The read-only array of the tensor's shape over its own bytes. Raises `ValueError` with a sentence if dtype, shape
    and data do not go together.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ValueError("the tensor has no dtype: set one of the DTYPE_ values")
    shape = _check_shape(tensor.shape)
    expected = math.prod(shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise ValueError(
            f"the tensor has {len(tensor.data)} bytes of data: {dtype.name} of shape {shape} takes {expected}"
        )
    return np.frombuffer(tensor.data, dtype).reshape(shape)


def bit_array_to_message(samples: NDArray[np.uint8], num_bits: int) -> BitArray:
    """The message that holds `samples`, of shape (..., shots, ceil(num_bits / 8)) as in Qiskit's `BitArray.array`."""
    size = (num_bits + 7) // 8
    if samples.dtype != np.uint8 or samples.ndim < 2 or samples.shape[-1] != size:
        raise ValueError(f"{num_bits} bits need an array of uint8 of shape (..., shots, {size}), not {samples.shape}")
    return BitArray(num_bits=num_bits, shape=samples.shape[:-1], data=samples.tobytes())


def bit_array_from_message(message: BitArray) -> tuple[NDArray[np.uint8], int]:
    """(samples, num_bits), the two arguments of Qiskit's `BitArray`. `samples` is read-only, of shape
    (..., shots, ceil(num_bits / 8)). Raises `ValueError` with a sentence if shape and data do not go together.
    """
    shape = _check_shape(message.shape)
    if not shape or message.num_bits < 0:
        raise ValueError("the bit array has no shape: its last axis is the number of shots")
    size = (message.num_bits + 7) // 8
    expected = math.prod(shape) * size
    if len(message.data) != expected:
        raise ValueError(
            f"the bit array has {len(message.data)} bytes of data: shape {shape} of {message.num_bits} bits "
            f"takes {expected}"
        )
    return np.frombuffer(message.data, np.uint8).reshape(*shape, size), message.num_bits


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) > AXES_MAX:
        raise ValueError(f"the shape has {len(shape)} axes: at most {AXES_MAX} are allowed")
    if any(length < 0 for length in shape):
        raise ValueError("the shape has a negative length: an axis is at least 0 long")
    return tuple(shape)
