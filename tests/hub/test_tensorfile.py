import hashlib
import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from checkpoints import header_bytes, lora_tensors, write_safetensors
from lorary.hub import tensorfile
from lorary.hub.errors import CheckpointError
from lorary.hub.tensorfile import read_header, tensor_hashes


def entry(start, end, shape=(4,), dtype="U8"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_reads_what_the_safetensors_library_writes(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"b": np.ones((2, 2), np.float32), "a": np.array([1, 2, 3], np.int8)}
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert list(header) == ["a", "b"]
    assert (header["b"].dtype, header["b"].shape, header["b"].elements) == ("F32", (2, 2), 4)
    assert path.read_bytes()[header["a"].start : header["a"].end] == b"\1\2\3"


def test_the_library_reads_what_the_tests_write(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", lora_tensors())
    assert sorted(safetensors.numpy.load_file(path)) == list(read_header(path))


def test_empty_tensors_are_allowed(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", {"a": ("F32", [0, 4], b""), "b": ("U8", [2], b"xy")})
    assert read_header(path)["a"].elements == 0


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, "overlaps"),
        ({"a": entry(0, 4), "b": entry(6, 10)}, 10, "gap"),
        ({"a": entry(4, 8)}, 8, "gap"),
        ({"a": entry(0, 4)}, 9, "follow the last tensor"),
        ({"a": entry(0, 4)}, 2, "needs 4 bytes"),
        ({"a": entry(0, 8)}, 8, "needs 4 bytes"),
        ({"a": entry(-4, 0)}, 4, "malformed"),
        ({"a": entry(4, 0)}, 4, "needs 4 bytes"),
        ({"a": entry(0, 4, [-4])}, 4, "malformed"),
        ({"a": entry(0, 4, [-2, -2])}, 4, "malformed"),
        ({"a": entry(0, 4, [4.0])}, 4, "malformed"),
        ({"a": entry(False, True, [True])}, 1, "malformed"),
        ({"a": entry(0, 4, ["4"])}, 4, "malformed"),
        ({"a": entry(0, 4, [2**62, 2**62])}, 4, "needs"),
        ({"a": entry(0, 4, [10**25])}, 4, "malformed"),
        ({"a": entry(0, 4, [1] * 65)}, 4, "malformed"),
        ({"a": entry(0, 4, dtype="F4")}, 4, "dtype"),
        ({"a": entry(0, 4, dtype=["U8"])}, 4, "malformed"),
        ({"a": {"dtype": "U8", "shape": [4]}}, 4, "malformed"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 2, 4]}}, 4, "malformed"),
        ({"a": [1, 2]}, 4, "malformed"),
        ({"a": None}, 4, "malformed"),
        ([], 0, "isn't a JSON object"),
        (b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 4]}}', 4, "NaN"),
        (b'{"a": {}, "a": {"dtype":"I8","shape":[4],"data_offsets":[0,4]}}', 4, "twice"),
        (b'{"\\ud800": {"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 4, "surrogates"),
        (b"\xff\xfe{}", 0, "isn't JSON"),
        (b"[" * 100_000, 0, "deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", 0, "isn't JSON"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path, header, data, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(header_bytes(header) + b"\0" * data)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_what_git_lfs_leaves_in_a_clone_without_it_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n")
    with pytest.raises(CheckpointError, match=r"a pointer of Git LFS.*`git lfs pull`"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"\1\2\3", struct.pack("<Q", 2**63), struct.pack("<Q", 10) + b"{}"])
def test_a_file_shorter_than_its_header_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


def test_every_truncation_is_refused(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", lora_tensors())
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_header(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_header(tmp_path / "x.safetensors")


def test_the_hashes_are_those_of_each_tensor_s_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "_CHUNK", 5)  # a tensor is read in several pieces
    tensors = lora_tensors()
    path = write_safetensors(tmp_path / "x.safetensors", tensors)
    expected = {name: hashlib.sha256(content).hexdigest() for name, (_, _, content) in tensors.items()}
    assert dict(tensor_hashes(path, read_header(path))) == expected


def test_hashes_notice_a_file_cut_after_its_header_was_read(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", lora_tensors())
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="ends in the middle"):
        dict(tensor_hashes(path, header))


def test_metadata_is_no_tensor(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(header_bytes(json.dumps({"__metadata__": {"format": "pt"}, "a": entry(0, 4)}).encode()) + b"1234")
    assert list(read_header(path)) == ["a"]
