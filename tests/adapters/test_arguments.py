"""Arguments of the wrong type: each is an error of the call that says what was expected."""

import numpy
import pandas
import pytest
import torch

from lorary.adapters import Backbone
from lorary.hub.errors import UsageError
from tiny import make_adapter

HALF = "profit \ud83d"  # of an emoji that was cut in two


@pytest.fixture(scope="module")
def decoder(bases, tmp_path_factory):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(make_adapter(bases("llama"), tmp_path_factory.mktemp("lm") / "one", task="text-generation"))
    return backbone


@pytest.fixture(scope="module")
def encoder(bases, tmp_path_factory):
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(make_adapter(bases("bert"), tmp_path_factory.mktemp("cls") / "one", task="text-classification"))
    return backbone


@pytest.fixture(scope="module")
def engine(decoder):
    with decoder.engine(cache_tokens=64, page_tokens=8) as engine:
        yield engine


@pytest.mark.parametrize("rows", [None, 5, True, b"profit", {"profit"}, [None], [5], [b"profit"]], ids=repr)
def test_what_are_no_rows(encoder, decoder, rows):
    for call in (encoder.predict, decoder.generate):
        with pytest.raises(UsageError, match=r"expected a (text|prompt)"):
            call(rows, "one")


def test_half_a_character(encoder, decoder, engine):
    calls = [
        lambda: encoder.predict([{"text": "profit", "text_pair": HALF}], "one"),
        lambda: encoder.predict(HALF),
        lambda: decoder.predict(["profit", HALF], "one"),
        lambda: decoder.generate([[{"role": "user", "content": HALF}]]),
        lambda: engine.submit(HALF),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"the lone surrogate '\\ud83d' at sign 7"):
            call()


@pytest.mark.parametrize("names", [5, True, b"one", {"one"}, {"one": 1}, [5], [["one"]], ["one"] * 3, []], ids=repr)
def test_what_are_no_adapters_names(encoder, names):
    with pytest.raises(UsageError, match="adapter"):
        encoder.predict(["profit", "rose"], names)
    if names != ["one"] * 3:
        with pytest.raises(UsageError, match="adapter"), encoder.using(names):
            pass


@pytest.mark.parametrize("name", [None, 5, b"one"], ids=repr)
def test_what_is_no_name(decoder, engine, name):
    calls = [
        decoder.unload, decoder.pin, decoder.unpin, decoder.verify, decoder.state, decoder.unfollow,
        lambda name: decoder.swap(name, "other"), lambda name: decoder.merge(name, "./merged"),
        lambda name: decoder.prefetch([name]), lambda name: decoder.blend({name: 1.0}, "both"),
    ]  # fmt: skip
    if name is not None:
        calls += [lambda name: decoder.load("./folder", name), lambda name: decoder.logits([[5]], name)]
        calls += [lambda name: decoder.follow("sql@prod", name)]
        calls += [lambda name: engine.submit("profit", name)]
    for call in calls:
        with pytest.raises(UsageError, match="expected the name of a loaded adapter"):
            call(name)


@pytest.mark.parametrize("reference", [None, 5, b"one", [], True], ids=repr)
def test_what_is_no_reference(decoder, reference):
    for call in (decoder.load, decoder.follow, lambda reference: decoder.swap("one", reference)):
        with pytest.raises(UsageError, match="isn't a reference; expected one of"):
            call(reference)


@pytest.mark.parametrize(
    "rows", [None, 5, "profit", [5], [[]], ["ab"], [["a"]], [[1.5]], [[-1]], [[10**9]], [[True]]], ids=repr
)
def test_what_are_no_token_rows(decoder, rows):
    with pytest.raises(UsageError, match="expected rows of token ids"):
        decoder.logits(rows, "one")


SETTINGS = [
    {"max_new_tokens": "ten"}, {"max_new_tokens": 0}, {"max_new_tokens": True}, {"max_new_tokens": 1.5},
    {"num_beams": 1.5}, {"num_beams": 0}, {"temperature": "hot"}, {"temperature": float("nan")}, {"top_k": 1.5},
    {"top_k": True}, {"do_sample": "yes"}, {"eos_token_id": "end"}, {"eos_token_id": [None]}, {"eos_token_id": 1.5},
]  # fmt: skip
MORE = [
    {"num_return_sequences": 0}, {"max_length": 1.5}, {"length_penalty": "long"}, {"pad_token_id": "x"},
    {"generation_config": {}}, {"streamer": 5}, {"assistant_model": "gpt2"}, {"logits_processor": [5]},
    {"custom_generate": "user/repo"},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS + MORE, ids=str)
def test_settings_of_generation(decoder, engine, settings):
    (name,) = settings
    calls = [lambda: decoder.generate("profit", **settings), lambda: decoder.predict("profit", "one", **settings)]
    if settings in SETTINGS:
        calls.append(lambda: engine.submit("profit", **settings))
    for call in calls:
        with pytest.raises(UsageError, match=f"{name}=.*: expected "):
            call()


@pytest.mark.parametrize("settings", [{"input_ids": torch.tensor([[5]])}, {"past_key_values": ()}], ids=str)
def test_tensors_are_for_a_using_block(decoder, settings):
    with pytest.raises(UsageError, match="expected texts alone; with tensors, call generate on a `using`"):
        decoder.generate("profit", **settings)


def test_numbers_of_numpy_are_numbers(encoder, decoder):
    want = decoder.generate("profit", max_new_tokens=2, repetition_penalty=1.5)
    settings = {"max_new_tokens": numpy.int64(2), "repetition_penalty": numpy.float64(1.5)}
    assert decoder.generate("profit", **settings) == want
    assert encoder.predict(["profit"], "one", batch_size=numpy.int64(1)) == encoder.predict(["profit"], "one")
    for rows in (numpy.array([[5, 6]]), torch.tensor([[5, 6]]), [torch.tensor([5, 6])], [(numpy.int64(5), 6)]):
        torch.testing.assert_close(decoder.logits(rows, None), decoder.logits([[5, 6]], None))


@pytest.mark.parametrize(
    "settings", [{"slots": True}, {"slots": 1.5}, {"slot_wait": "long"}, {"slot_wait": float("nan")}], ids=str
)
def test_settings_of_a_backbone(decoder, settings):
    with pytest.raises(UsageError, match=f"{next(iter(settings))}=.*: expected a"):
        Backbone.from_model(decoder.model, decoder.tokenizer, identity=decoder.identity, **settings)
    with pytest.raises(UsageError, match="expected a transformers model, found NoneType"):
        Backbone.from_model(None, None)
    with pytest.raises(UsageError, match="expected a tokenizer or None, found str: 'bert'"):
        Backbone.from_model(decoder.model, "bert")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64, "float64"], ids=str)
def test_dtypes_that_nothing_is_served_in(bases, decoder, tmp_path, dtype):
    for call in (
        lambda: Backbone.from_pretrained(str(bases("llama")), dtype=dtype),
        lambda: decoder.merge("one", tmp_path / "merged", dtype=dtype),
    ):
        with pytest.raises(UsageError, match=r"unknown dtype '\w+'; expected one of float32, bfloat16, float16"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"device": "meta"}, {"device_map": {"": "disk"}}], ids=str)
def test_devices_that_hold_no_weights(bases, settings):
    with pytest.raises(UsageError, match="leave weights on disk, on the CPU beside a GPU, or nowhere"):
        Backbone.from_pretrained(str(bases("bert")), **settings)


def test_a_device_and_a_map_of_devices_exclude_one_another(bases):
    with pytest.raises(UsageError, match=r"device='cpu' and device_map='auto': .* give one of them"):
        Backbone.from_pretrained(str(bases("bert")), device="cpu", device_map="auto")


def test_columns_and_tables(encoder):
    """Python lists a table's column names, which would be taken for texts."""
    table = pandas.DataFrame({"text": ["profit rose", "dog"], "adapter": ["one", "one"]})
    want = encoder.predict(["profit rose", "dog"], "one")
    assert encoder.predict(table["text"], table["adapter"]) == want
    assert encoder.predict(numpy.array(["profit rose", "dog"]), "one") == want
    assert encoder.predict(table[["text"]].to_dict("records"), "one") == want
    for rows in (table[["text"]], numpy.array("profit")):
        with pytest.raises(UsageError, match="expected a text, a mapping such as"):
            encoder.predict(rows, "one")
