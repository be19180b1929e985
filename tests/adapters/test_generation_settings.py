"""Arguments of generate that know of rows, or stand in the base's own config: as transformers has them, row by row."""

import pytest
import torch
import transformers as t

from lorary.adapters import Backbone
from lorary.hub.errors import RoutingError, UsageError
from methods import make_method
from tiny import make_adapter, make_base, peft_reference

LM = "text-generation"
PROMPTS = ["profit rose the bank", "a cat", "dog"]
SETTINGS = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def folders(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "one": make_adapter(bases("llama"), folder / "one", task=LM, seed=1),
        "two": make_adapter(bases("llama"), folder / "two", task=LM, seed=2),
        "peft": make_method(bases("llama"), folder / "peft", "IA3", task=LM),
        "virtual": make_method(bases("llama"), folder / "virtual", "PROMPT_TUNING", task=LM),
        "prefix": make_method(bases("llama"), folder / "prefix", "PREFIX_TUNING", task=LM),
    }


@pytest.fixture
def backbone(bases, folders):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    for name, folder in folders.items():
        backbone.load(folder, name)
    return backbone


def peft_texts(base, folder, prompts, tokenizer, **settings):
    """What PEFT generates for each prompt alone."""
    model = peft_reference(base, folder, task=LM)
    texts = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        made = model.generate(**inputs, **SETTINGS | settings, pad_token_id=0)
        sequences = made if not hasattr(made, "sequences") else made.sequences
        texts += [tokenizer.decode(row[inputs["input_ids"].shape[1] :], skip_special_tokens=True) for row in sequences]
    return texts


@pytest.mark.parametrize("names", [["one", None, "two"], ["one", "peft", "two"], ["virtual"] * 3], ids=str)
def test_a_function_of_allowed_tokens_is_told_the_calls_rows(backbone, names):
    words = ("cash", "win"), ("and", "acute"), ("the", "a")
    ids = [backbone.tokenizer.convert_tokens_to_ids(list(pair)) for pair in words]
    texts = backbone.generate(PROMPTS, names, **SETTINGS, prefix_allowed_tokens_fn=lambda row, tokens: ids[row])
    for text, pair in zip(texts, words, strict=True):
        assert text
        assert set(text.split()) <= set(pair)


def test_a_streamer_streams_one_pass(backbone):
    streamer = t.TextIteratorStreamer(backbone.tokenizer, skip_prompt=True, timeout=5)
    text = backbone.generate("profit", "one", **SETTINGS, streamer=streamer)
    assert "".join(streamer) == text
    with pytest.raises(UsageError, match="streamer: these prompts take several passes"):
        backbone.generate(PROMPTS[:2], ["one", "peft"], **SETTINGS, streamer=streamer)


@pytest.mark.parametrize("own", [
    {"return_dict_in_generate": True, "output_scores": True}, {"num_beams": 3, "num_return_sequences": 2},
    {"prompt_lookup_num_tokens": 2}, {"suppress_tokens": [20, 21, 30]}, {"cache_implementation": "static"},
    {"forced_eos_token_id": 3}, {"min_length": 9},
], ids=str)  # fmt: skip
def test_what_the_bases_own_config_says(bases, folders, tmp_path, own):
    base = tmp_path / "base"
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.model.generation_config.update(**own)
    backbone.model.save_pretrained(base)
    backbone.tokenizer.save_pretrained(base)
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(folders["one"], "one")
    found = backbone.generate(PROMPTS, "one", **SETTINGS)
    texts = [text for row in found for text in ([row] if isinstance(row, str) else row)]
    assert texts == peft_texts(base, folders["one"], PROMPTS, backbone.tokenizer)


@pytest.mark.parametrize("settings", [
    {"max_length": 12}, {"min_length": 9, "max_new_tokens": 8, "eos_token_id": [41, 5, 7, 19]},
    {"encoder_repetition_penalty": 1.6, "max_new_tokens": 8},
], ids=str)  # fmt: skip
def test_what_counts_a_prompts_tokens_doesnt_count_its_padding(backbone, settings):
    """transformers counts, or reads, what is before a short prompt in a batch as if it were of the prompt."""
    prompts = ["profit rose the bank a report shares", "a cat"]
    alone = [backbone.generate(prompt, **settings) for prompt in prompts]
    assert backbone.generate(prompts, ["one", None], **settings)[1] == alone[1]
    assert backbone.generate(prompts, **settings) == alone


def test_assisted_decoding_takes_the_rows_one_by_one(bases, backbone):
    small = t.AutoModelForCausalLM.from_pretrained(bases("llama"))
    want = backbone.generate(PROMPTS, ["one", None, "two"], **SETTINGS)
    for assistant in ({"assistant_model": small}, {"prompt_lookup_num_tokens": 2}):
        assert backbone.generate(PROMPTS, ["one", None, "two"], **SETTINGS, **assistant) == want


@pytest.mark.parametrize(("name", "settings"), [
    ("virtual", {"prompt_lookup_num_tokens": 2}), ("prefix", {"assistant_early_exit": 1}),
    ("virtual", {"cache_implementation": "static"}), ("prefix", {"cache_implementation": "offloaded_static"}),
    ("prefix", {"use_cache": False}),
], ids=str)  # fmt: skip
def test_virtual_tokens_refuse_what_they_cant_be_brought_together_with(bases, backbone, name, settings):
    """PEFT answers otherwise than without a draft, or fails in the middle."""
    (setting,) = settings
    with pytest.raises(UsageError, match=rf"{setting}.*(leave {setting} out|leave it out|pass use_cache=True)"):
        backbone.generate("profit rose", name, **SETTINGS, **settings)
    inputs = backbone.tokenizer("profit rose", return_tensors="pt", return_token_type_ids=False)
    with backbone.using(name) as model, pytest.raises(UsageError, match=setting):
        model.generate(**inputs, **SETTINGS, **settings)


def test_virtual_tokens_without_a_cache(backbone):
    want = backbone.generate(PROMPTS, "virtual", **SETTINGS)
    assert backbone.generate(PROMPTS, "virtual", **SETTINGS, use_cache=False) == want
    backbone.model.generation_config.cache_implementation = "hybrid"  # as some bases' own files have it
    assert backbone.generate(PROMPTS, "virtual", **SETTINGS) == want


@pytest.mark.parametrize("name", ["one", "peft"])
def test_a_thread_that_knows_nothing_of_the_adapters(backbone, name):
    """transformers' continuous batching would answer as the bare base does."""
    inputs = backbone.tokenizer("profit", return_tensors="pt", return_token_type_ids=False)
    with pytest.raises(UsageError, match=r"cache_implementation='paged'.*Backbone\.engine"):
        backbone.generate("profit", name, cache_implementation="paged")
    with backbone.using(name) as model:
        for call in (
            lambda: model.generate(**inputs, cache_implementation="paged"),
            lambda: model.generate_batch([[5, 6]], max_new_tokens=2),
            lambda: model.continuous_batching_context_manager().__enter__(),
        ):
            with pytest.raises(RoutingError, match=r"a thread of its own.*use Backbone\.engine"):
                call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="served there")
def test_a_cache_that_moves_to_a_device_that_isnt_there(backbone):
    with pytest.raises(UsageError, match=r"can't generate with .*cache_implementation: "):
        backbone.generate("profit", "one", **SETTINGS, cache_implementation="offloaded")


@pytest.mark.skipif(torch.cuda.is_available(), reason="served there")
@pytest.mark.parametrize("words", ["CUDA error: no driver", "Backend doesn't support create a new Stream."])
def test_so_it_is_whatever_a_torch_with_cuda_says_of_it(backbone, monkeypatch, words):
    def stream(*args, **kwargs):
        raise RuntimeError(words)

    monkeypatch.setattr(torch, "Stream", stream)
    with pytest.raises(UsageError, match=f"can't generate with .*cache_implementation: {words}"):
        backbone.generate("profit", "one", **SETTINGS, cache_implementation="offloaded")


def test_rows_that_end_early_are_followed_by_nothing(tmp_path):
    """The token to pad with that some bases name is one of texts: transformers leaves it in them."""
    base = make_base("llama", tmp_path / "base", pad_token_id=20)
    backbone = Backbone.from_pretrained(str(base))
    settings = {"max_new_tokens": 30, "do_sample": False}
    alone = [backbone.generate(prompt, **settings) for prompt in PROMPTS]
    assert min(len(text.split()) for text in alone) < 30 <= max(len(text.split()) for text in alone)
    assert backbone.generate(PROMPTS, **settings) == alone


def test_an_index_error_of_the_callers_own_stays_one(backbone):
    def choose(row, tokens):
        return [][0]

    with pytest.raises(IndexError, match="list index out of range"):
        backbone.generate("profit", "one", **SETTINGS, prefix_allowed_tokens_fn=choose)
