import numpy as np
import pytest
from cadenza.arrays import array_from_tensor, bit_array_from_message, bit_array_to_message, tensor_from_array
from cadenza.v1.result_pb2 import BitArray
from cadenza.v1.tensor_pb2 import DTYPE_BOOL, DTYPE_FLOAT64, DTYPE_INT32, Tensor
from qiskit.primitives import BitArray as QiskitBitArray


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "int32", "uint8", "bool", "complex128"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 1, 4), (2, 0, 3)])
def test_arrays_come_back_as_they_went(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    back = array_from_tensor(Tensor.FromString(tensor_from_array(array).SerializeToString()))
    assert back.dtype == array.dtype
    assert back.shape == shape
    assert np.array_equal(back, array)


def test_the_contracts_example_has_the_bytes_it_says() -> None:
    tensor = tensor_from_array([[1.0, 2.0], [3.0, 4.0]])
    assert (tensor.dtype, list(tensor.shape), len(tensor.data)) == (DTYPE_FLOAT64, [2, 2], 32)
    assert tensor.data[:8].hex() == "000000000000f03f"


def test_byte_order_and_layout_of_the_source_do_not_matter() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    tensor = tensor_from_array(array)
    assert tensor.dtype == DTYPE_INT32
    assert np.array_equal(array_from_tensor(tensor), array)


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (Tensor(shape=[1], data=b"x"), "no dtype"),
        (Tensor(dtype=DTYPE_FLOAT64, shape=[2], data=bytes(8)), "takes 16"),
        (Tensor(dtype=DTYPE_FLOAT64, shape=[-1], data=bytes(8)), "negative"),
        (Tensor(dtype=DTYPE_BOOL, shape=[1] * 33, data=b"x"), "33 axes"),
        (Tensor(dtype=DTYPE_FLOAT64, shape=[2**62, 8], data=b""), "takes"),
    ],
)
def test_tensors_that_contradict_themselves_are_refused(tensor: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        array_from_tensor(tensor)


def test_elements_without_a_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        tensor_from_array(["a"])


def test_bits_are_packed_as_the_contracts_example_says() -> None:
    theirs = QiskitBitArray.from_samples(["1000000011", "0000000010"], num_bits=10)
    message = bit_array_to_message(theirs.array, theirs.num_bits)
    assert (message.num_bits, list(message.shape), message.data.hex()) == (10, [2], "02030002")
    assert QiskitBitArray(*bit_array_from_message(message)) == theirs


@pytest.mark.parametrize(
    "message",
    [
        BitArray(num_bits=3, data=b""),
        BitArray(num_bits=9, shape=[2], data=bytes(2)),
        BitArray(num_bits=-1, shape=[2], data=b""),
        BitArray(num_bits=1, shape=[-2], data=b""),
    ],
)
def test_bit_arrays_that_contradict_themselves_are_refused(message: BitArray) -> None:
    with pytest.raises(ValueError, match=r"bit array|shape"):
        bit_array_from_message(message)
