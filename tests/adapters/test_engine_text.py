"""Streaming: characters of several tokens come whole, and the pieces add up to the text."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lorary.adapters.engine import text as streams
from lorary.adapters.engine.text import TextStream, text_of
from tiny import make_tokenizer

TEXT = "héllo 🌍 世界\n  ä 👩‍👩‍👧 end"


def byte_level():
    backend = Tokenizer(models.BPE({sign: i for i, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def byte_fallback():
    """As Llama 2 and Gemma have it: a space belongs to the word behind it, and unknown characters become bytes."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256}
    vocabulary |= {sign: 257 + place for place, sign in enumerate("abdehlno")}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def pieces(tokenizer, tokens):
    stream = TextStream(tokenizer)
    return [*(stream.add([token]) for token in tokens), stream.rest()]


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_characters_come_whole(make):
    tokenizer = make()
    tokens = tokenizer(TEXT)["input_ids"]
    assert len(tokens) > len(TEXT)
    found = pieces(tokenizer, tokens)
    assert "".join(found) == text_of(tokens, tokenizer) == TEXT
    assert not any("\ufffd" in piece for piece in found)
    assert "🌍" in found


def test_an_unfinished_character_comes_at_the_end():
    tokenizer = byte_level()
    tokens = tokenizer("ok 🌍")["input_ids"][:-1]
    *while_running, rest = pieces(tokenizer, tokens)
    assert "".join(while_running) == "ok "
    assert rest == "\ufffd"


def test_bytes_that_make_no_characters():
    tokenizer = byte_level()
    for seed in range(50):
        tokens = [random.Random(seed * 99 + place).randrange(256) for place in range(40)]
        assert "".join(pieces(tokenizer, tokens)) == text_of(tokens, tokenizer)


class Counting:
    """A tokenizer that counts the tokens that it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.decoded = tokenizer, 0

    def decode(self, tokens, **settings):
        self.decoded += len(tokens)
        return self.tokenizer.decode(tokens, **settings)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("run", [[0xFF], [0x80], [0xF0, 0x9F], [0xE4, 0xB8, 0xC3, 0xFF]], ids=str)
def test_bytes_that_make_no_characters_are_no_more_work_the_more_there_are(make, run):
    """They come as soon as no token can finish them; what may still become a character waits for it."""
    tokenizer = Counting(make())
    tokens = [of_byte(tokenizer.tokenizer, byte) for byte in run] * (600 // len(run))
    stream = TextStream(tokenizer)
    found = [stream.add([token]) for token in tokens]
    assert tokenizer.decoded < 100 * len(tokens)
    assert "".join(found) + stream.rest() == text_of(tokens, tokenizer)
    assert len(stream.rest()) <= 20


def of_byte(tokenizer, byte):
    """The token of a byte: a letter where there is one."""
    names = chr(byte) if byte < 128 else "", f"<0x{byte:02X}>", bytes_to_unicode()[byte]
    known = tokenizer.get_vocab()
    return known[next(name for name in names if name in known)]


def parts(tokenizer, tokens, rng):
    """The pieces of tokens that come several at once."""
    stream, found = TextStream(tokenizer), []
    while tokens:
        count = rng.choice([1, 1, 1, 2, 5, 40])
        found.append(stream.add(tokens[:count]))
        tokens = tokens[count:]
    return [*found, stream.rest()]


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_letting_go_early_changes_no_text(make, monkeypatch):
    """Whole characters, halves of them and bytes of none, in runs of any length."""
    tokenizer = make()
    units = [*(sign.encode() for sign in "aä世🌍"), b"\xff", b"\x80", b"\xf0\x9f", b"\xe4", b"\xf0\x9f\x8c"]
    released = 0
    token_of = {byte: of_byte(tokenizer, byte) for byte in range(256)}
    for seed in range(300):
        rng = random.Random(seed)
        some = rng.sample(units, rng.randint(1, 4))
        written = b"".join(rng.choice(some) * rng.choice([1, 2, 30]) for _ in range(rng.randint(1, 20)))
        tokens = [token_of[byte] for byte in written]
        found = parts(tokenizer, tokens, random.Random(seed))
        monkeypatch.setattr(streams, "_LONG", 10**6)
        whole = parts(tokenizer, tokens, random.Random(seed))
        monkeypatch.undo()
        assert "".join(found) == "".join(whole)
        released += found != whole
    assert released > 100


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_a_character_with_special_tokens_in_it_after_a_long_run_of_none(make):
    tokenizer = make()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    lost, first, *others = (of_byte(tokenizer, byte) for byte in b"\xff" + "🌍".encode())
    tokens = [*[lost] * 40, first, *[tokenizer.bos_token_id] * 3, *others]
    assert "".join(pieces(tokenizer, tokens)) == text_of(tokens, tokenizer)


def test_special_tokens_are_left_out():
    tokenizer = make_tokenizer("llama")
    tokens = tokenizer("profit rose")["input_ids"] + [3, 3]
    assert pieces(tokenizer, tokens) == ["profit", " rose", "", "", ""]


def added(tokenizer, tokens):
    """What a stream says of each token before it gets it."""
    stream, texts = TextStream(tokenizer, special=True), []
    for token in tokens:
        texts.append(stream.would_add(token))
        stream.add([token])
    return texts


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_what_each_token_adds(make):
    """The one that finishes a character has it whole."""
    tokenizer = make()
    found = added(tokenizer, tokenizer(TEXT)["input_ids"])
    assert "".join(text for text in found if text != "\ufffd") == TEXT
    assert found.count("\ufffd") > 20


def test_what_a_special_token_and_one_in_its_place_add():
    tokenizer = make_tokenizer("llama")
    tokens = tokenizer("profit rose")["input_ids"] + [tokenizer.eos_token_id]
    assert added(tokenizer, tokens) == ["profit", " rose", f" {tokenizer.eos_token}"]
    stream = TextStream(tokenizer)
    stream.add(tokens[:1])
    assert [stream.would_add(token) for token in tokens[1:]] == [" rose", ""]
