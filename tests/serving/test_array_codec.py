"""Arrays on the wire: what each kind of client sends is read, and nothing is believed before it is checked."""

from __future__ import annotations

import io
from typing import Any

import msgpack
import numpy as np
import pytest

from atlas.errors import InputError
from atlas.system.array_codec import Form, pack, unpack

FORMS: tuple[Form, ...] = ("openpi", "vla-eval", "groot-npy", "groot-nd")
IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "array",
    [
        IMAGE,
        np.array([[1.5, np.nan, np.inf]], np.float32),
        np.float64([1, 2]),
        np.array([True, False]),
        np.zeros((0, 7), np.float32),
        np.array(3.0),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
    ],
    ids=lambda array: f"{array.dtype.str}{list(array.shape)}",
)
def test_what_is_packed_is_what_is_unpacked(form: Form, array: np.ndarray) -> None:
    found = unpack(pack({"deep": [{"array": array, "text": "é", "number": 3}]}, form))["deep"][0]

    np.testing.assert_array_equal(found["array"], array)
    assert found["array"].dtype == array.dtype and found["array"].shape == array.shape
    assert (found["text"], found["number"]) == ("é", 3)


@pytest.mark.parametrize("form", FORMS)
def test_numpy_numbers_are_numbers(form: Form) -> None:
    assert unpack(pack({"n": np.float32(0.5)}, form))["n"] == 0.5


def test_the_bytes_are_openpis() -> None:
    """Written out by hand: a map of four keys of bytes."""
    frame = (
        b"\x81\xa1a\x84"
        b"\xc4\x0b__ndarray__\xc3"
        b"\xc4\x04data\xc4\x08\x00\x00\x80?\x00\x00\x00@"
        b"\xc4\x05dtype\xa3<f4"
        b"\xc4\x05shape\x92\x01\x02"
    )

    assert pack({"a": np.array([[1, 2]], np.float32)}) == frame
    assert unpack(frame)["a"].tolist() == [[1.0, 2.0]]


def test_images_of_vla_eval_may_be_compressed() -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "PNG")
    sent = {"__image__": True, "format": "png", "data": file.getvalue(), "shape": [2, 3, 3]}

    np.testing.assert_array_equal(unpack(msgpack.packb(sent)), IMAGE)


def openpi(**changes: Any) -> dict[bytes, Any]:
    whole = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]} | changes
    return {key.encode(): value for key, value in whole.items()}


def npy(header: dict[str, Any]) -> bytes:
    """A .npy file without its numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


PICKLE = b"cos\nsystem\n(S'touch /tmp/was-here'\ntR."


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (openpi(dtype="O"), "dtype is 'O'"),
        (openpi(dtype="|V8"), "dtype"),
        (openpi(dtype="<c8"), "dtype"),
        (openpi(dtype="<f4,<f4"), "dtype"),
        (openpi(dtype=["a", "b"]), "dtype"),
        (openpi(shape=[3]), "takes 12 bytes, and holds 8"),
        (openpi(shape=[-2]), "from 0 on"),
        (openpi(shape=[2**40, 2**40]), "bytes"),
        (openpi(shape=[1] * 9), "at most 8"),
        (openpi(shape=2), "shape is 2"),
        (openpi(data="text"), "holds str"),
        ({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}, "number"),
        ({b"nd": True, b"type": "O", b"kind": b"O", b"shape": [1], b"data": PICKLE}, "dtype"),
        ({"__ndarray_class__": True, "as_npy": PICKLE}, "npy"),
        ({"__ndarray_class__": True, "as_npy": 3}, "npy"),
        ({"__ndarray_class__": True, "as_npy": b"\x93NUMPY\x01\x00\x40\x00{'descr': (" + b"(" * 60}, "npy"),
        ({"__ndarray_class__": True, "as_npy": npy({"descr": "|O", "fortran_order": False, "shape": ()})}, "dtype"),
        ({"__image__": True, "format": "tiff", "data": b""}, "tiff"),
        ({"__image__": True, "format": "png", "data": b"no image"}, "image"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_array_that_is_not_as_it_says_is_refused(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        unpack(msgpack.packb({"a": value}))


def test_a_header_that_promises_gigabytes_takes_no_memory() -> None:
    header = npy({"descr": "<f8", "fortran_order": False, "shape": (2**40,)})

    with pytest.raises(InputError, match="takes 8796093022208 bytes"):
        unpack(msgpack.packb({"__ndarray_class__": True, "as_npy": header}))


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\x81\xa1a", pack({"a": 1}) + b"\x00", b"\xdd\xff\xff\xff\xff", b"\x91" * 3000, b"\x81\x90\x01"],
    ids=range(7),
)
def test_a_frame_that_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(InputError, match=r"no msgpack|values"):
        unpack(frame)


def test_small_values_by_the_million_are_refused() -> None:
    with pytest.raises(InputError, match="more than 100000 values"):
        unpack(msgpack.packb([[[] for _ in range(1000)] for _ in range(200)]))
    with pytest.raises(InputError):
        unpack(msgpack.packb([None] * 200_000))


def test_objects_are_not_sent() -> None:
    for form in FORMS:
        with pytest.raises(TypeError):
            pack({"a": np.array([object()])}, form)
        with pytest.raises(TypeError):
            pack({"a": object()}, form)
