"""The tokenizer that a base is read with."""

import ctypes
import random

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lorary.adapters.base.tokenizer import read_tokenizer
from samples import WORDS, bpe_tokenizer


class MallInfo(ctypes.Structure):
    """glibc's ``mallinfo2``; ``uordblks`` are the bytes that are in use in the main thread's heap."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def in_use() -> int:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("the C library doesn't say how much memory is in use")
    libc.mallinfo2.restype = MallInfo
    return libc.mallinfo2().uordblks


def test_texts_that_nothing_parts_into_words_are_not_kept(tmp_path):
    """As Llama 2's and Mistral's tokenizers have them: the ``tokenizers`` library would keep 10,000 in each thread."""
    backend = Tokenizer.from_str(bpe_tokenizer().backend_tokenizer.to_str())
    backend.pre_tokenizer = None
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    tokenizer = read_tokenizer("base", str(tmp_path))
    words = random.Random(0)
    texts = ["".join(words.choices(WORDS, k=12)) for _ in range(3000)]
    tokenizer(texts[0])
    before = in_use()
    for text in texts:
        tokenizer.backend_tokenizer.encode(text)
    assert in_use() - before < 500_000  # kept, they take 5 MB
