"""A checkpoint's tensors are read once: what is hashed is what is served, or nothing is."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorary.adapters.tiers.weights import WeightsReader
from lorary.hub.checkpoint import WEIGHTS_NAME, read_checkpoint
from lorary.hub.errors import ChangedFilesError, CheckpointError, UnsupportedAdapterError
from tiny import make_adapter


@pytest.fixture
def checkpoint(bases, tmp_path):
    return read_checkpoint(make_adapter(bases("bert"), tmp_path / "a", task="text-classification"))


def test_the_tensors_and_the_digest_are_the_files(checkpoint):
    reader = WeightsReader()
    for _ in range(2):  # into a new buffer, and into the same once more
        with reader.read(checkpoint) as weights:
            expected = load_file(checkpoint.files[WEIGHTS_NAME])
            assert weights.tensors.keys() == expected.keys()
            assert all(torch.equal(weights.tensors[key], expected[key]) for key in expected)
            assert weights.digest == checkpoint.digest


@pytest.mark.parametrize(("change", "found"), [(lambda whole: whole + b"?", "more"), (lambda whole: whole[:-1], "")])
def test_a_file_that_changed_since_its_header_was_read_is_refused(checkpoint, change, found):
    path = checkpoint.files[WEIGHTS_NAME]
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    expected = rf"holds {found or len(whole) - 1} bytes, its header was read from a file of {len(whole)}"
    with pytest.raises(CheckpointError, match=expected), WeightsReader().read(checkpoint):
        pass
    path.unlink()
    with pytest.raises(CheckpointError, match="can't be read"), WeightsReader().read(checkpoint):
        pass


def test_other_numbers_under_a_known_digest_are_refused(checkpoint):
    path, digest = checkpoint.files[WEIGHTS_NAME], checkpoint.digest
    with WeightsReader().read_again(checkpoint, digest) as weights:
        assert weights.digest == digest
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ChangedFilesError, match="have changed"), WeightsReader().read_again(checkpoint, digest):
        pass


def test_whole_numbers_are_no_weights(checkpoint):
    path = checkpoint.files[WEIGHTS_NAME]
    save_file({**load_file(path), "ids": torch.arange(3)}, path)
    fresh = read_checkpoint(checkpoint.files)
    with WeightsReader().read(fresh, floats=False) as weights:
        assert weights.tensors["ids"].tolist() == [0, 1, 2]
    with pytest.raises(UnsupportedAdapterError, match="'ids' holds I64"), WeightsReader().read(fresh):
        pass
