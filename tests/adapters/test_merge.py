"""Merged models against PEFT's `merge_and_unload` and against the adapter they were merged from."""

import json
import shutil
import signal
import threading

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoTokenizer

from lorary.adapters import Backbone
from lorary.adapters.base.quantization import dense_weight
from lorary.adapters.merging.merge import saying_by_default
from lorary.hub.errors import MergeError, OutputError, UnknownReferenceError, UsageError
from lorary.hub.manifest import BaseIdentity, Manifest, Numerics, Prompt
from tiny import make_adapter, make_base, make_tokenizer, peft_reference, task_class

ROW = [7, 8, 9, 10, 11, 3]
LM = "text-generation"


def logits_of(model, task=LM):
    inputs = {"input_ids": torch.tensor([ROW])}
    if task == "seq2seq":
        inputs["decoder_input_ids"] = torch.tensor([[0, *ROW[:3]]])
    with torch.no_grad():
        output = model(**inputs)
    return (output.logits if hasattr(output, "logits") else output.last_hidden_state)[0].float()


def reload(folder, task):
    model, info = task_class(task).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


CASES = [
    ("bert", "text-classification", {}),
    ("bert", "token-classification", {"use_rslora": True, "rank_pattern": {"query": 2}}),
    ("bert", "feature-extraction", {"lora_bias": True}),
    ("bert", "text-classification", {"target_modules": ["query", "word_embeddings"]}),
    ("distilbert", "text-classification", {}),
    ("roberta", "token-classification", {"use_dora": True}),
    ("gpt2", LM, {}),
    ("gpt2", LM, {"use_dora": True}),
    ("gpt2", LM, {"lora_bias": True, "target_modules": ["c_attn", "c_proj"]}),
    ("gpt2", "text-classification", {"target_modules": ["wpe", "c_fc"]}),
    ("gpt2", LM, {"target_modules": ["c_attn"], "modules_to_save": ["c_fc"]}),
    ("llama", LM, {"alpha_pattern": {"v_proj": 3}, "use_dora": True}),
    ("llama", LM, {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    ("llama", LM, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ("llama", "text-classification", {}),
    ("gemma3", LM, {"target_modules": ["q_proj", "o_proj"]}),
    ("tied", LM, {}),
    ("t5", "seq2seq", {}),
    ("t5", "text-classification", {"modules_to_save": ["classification_head"]}),
]


@pytest.mark.parametrize(("family", "task", "lora"), CASES, ids=str)
def test_the_model_is_pefts(bases, tmp_path, family, task, lora):
    adapter = make_adapter(bases(family), tmp_path / "adapter", task=task, **lora)
    backbone = Backbone.from_pretrained(str(bases(family)))
    backbone.load(adapter)
    merged = backbone.merge("adapter", tmp_path / "merged")
    model = reload(tmp_path / "merged", task)
    got = logits_of(model, task)
    want = peft_reference(bases(family), adapter, task=task)
    with want.disable_adapter():
        bare = logits_of(want, task)
    want = logits_of(want.merge_and_unload(), task)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, bare, atol=1e-3)
    assert merged.difference <= 1e-5
    assert merged.model_class == type(model).__name__


@pytest.mark.parametrize(
    "lora", [{"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["lm_head"]}], ids=str
)
def test_a_tie_that_the_adapter_splits(bases, tmp_path, lora):
    """PEFT merges into the one tensor, which changes the other layer as well; the adapter itself doesn't."""
    adapter = make_adapter(bases("tied"), tmp_path / "adapter", task=LM, **lora)
    backbone = Backbone.from_pretrained(str(bases("tied")))
    backbone.load(adapter)
    backbone.merge("adapter", tmp_path / "merged")
    model = reload(tmp_path / "merged", LM)
    assert model.config.tie_word_embeddings is False
    want = logits_of(peft_reference(bases("tied"), adapter, task=LM))
    torch.testing.assert_close(logits_of(model), want, atol=1e-5, rtol=1e-5)


def make_bart(folder):
    torch.manual_seed(0)
    sizes = {f"{stack}_{size}": 4 for stack in ("encoder", "decoder") for size in ("attention_heads", "ffn_dim")}
    tokens = {"vocab_size": 45, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    config = transformers.BartConfig(**tokens, **sizes, **layers, d_model=16, max_position_embeddings=32, init_std=0.3)
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("target", ["shared", "lm_head", "embed_tokens"])
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_tie_of_four_names(tmp_path, family, target):
    """Both stacks' embeddings, the shared one and the output layer are one tensor; the config unties all of them."""
    base = tmp_path / "base"
    base = make_bart(base) if family == "bart" else make_base("t5", base, tie_word_embeddings=True)
    queries = {"bart": "q_proj", "t5": "q"}[family]
    model = task_class("seq2seq").from_pretrained(base)
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=[queries, target], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    backbone = Backbone.from_model(task_class("seq2seq").from_pretrained(base), None)
    backbone.load(tmp_path / "adapter")
    backbone.merge("adapter", tmp_path / "merged")
    want = logits_of(peft_reference(base, tmp_path / "adapter", task="seq2seq"), "seq2seq")
    got = logits_of(reload(tmp_path / "merged", "seq2seq"), "seq2seq")
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_an_embedding_that_scales_its_output(bases, tmp_path):
    adapter = make_adapter(
        bases("gemma3"), tmp_path / "adapter", task=LM, target_modules=["embed_tokens", "q_proj"], use_dora=True
    )
    backbone = Backbone.from_pretrained(str(bases("gemma3")))
    backbone.load(adapter)
    backbone.merge("adapter", tmp_path / "merged")
    want = logits_of(peft_reference(bases("gemma3"), adapter, task=LM))
    torch.testing.assert_close(logits_of(reload(tmp_path / "merged", LM)), want, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A Llama whose layers bitsandbytes takes, and an adapter on it."""
    folder = tmp_path_factory.mktemp("wide")
    base = make_base("llama", folder / "base")
    return base, make_adapter(base, folder / "adapter", task=LM)


@pytest.mark.parametrize(("quantization", "tolerance"), [("nf4", 1e-5), ("int8", 0.05)])
def test_into_the_dequantized_weights(wide, tmp_path, quantization, tolerance):
    base, adapter = wide
    backbone = Backbone.from_pretrained(str(base), quantization=quantization)
    backbone.load(adapter)
    backbone.merge("adapter", tmp_path / "merged")
    model = reload(tmp_path / "merged", LM)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    torch.testing.assert_close(
        logits_of(model), backbone.logits([ROW], "adapter")[0], atol=tolerance * 10, rtol=tolerance
    )
    # An untouched weight is the dequantized one, not the base's own.
    touched = "model.layers.0.self_attn.q_proj"
    reference = peft_reference(base, adapter, task=LM)
    delta = reference.get_submodule(f"base_model.model.{touched}").get_delta_weight("default")
    want = dense_weight(backbone.model.get_submodule(touched).base_layer).float() + delta
    torch.testing.assert_close(model.get_submodule(touched).weight, want, atol=1e-6, rtol=1e-5)
    own = task_class(LM).from_pretrained(base).get_submodule(touched).weight
    assert float((want - delta - own).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_embeddings_of_a_base_that_generates(bases, tmp_path, family, bias):
    """The merged model may be the whole language model; what is compared are the states before its vocabulary."""
    adapter = make_adapter(bases(family), tmp_path / "adapter", task="feature-extraction", bias=bias)
    backbone = Backbone.from_pretrained(str(bases(family)))
    backbone.load(adapter)
    backbone.merge("adapter", tmp_path / "merged")
    alone = Backbone.from_pretrained(str(tmp_path / "merged"))
    torch.testing.assert_close(*(one.predict("profit rose", name, pooling="mean") for one, name in (
        (backbone, "adapter"), (alone, None),
    )), atol=1e-5, rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize(("quantization", "tolerance"), [("nf4", 1e-5), ("int8", 0.05)])
@pytest.mark.parametrize("lora", [{"use_dora": True}, {"target_modules": ["c_fc"], "modules_to_save": ["attn.c_proj"]}])
def test_weights_that_quantization_turns_over(bases, tmp_path, lora, quantization, tolerance):
    """GPT-2's are [inputs, outputs], but not while they are quantized; some are square, so that no shape tells."""
    adapter = make_adapter(bases("gpt2"), tmp_path / "adapter", task=LM, **lora)
    backbone, plain = (Backbone.from_pretrained(str(bases("gpt2")), quantization=q) for q in (quantization, "none"))
    for one in (backbone, plain):
        one.load(adapter)
    effects = [(one.logits([ROW], "adapter")[0] - one.logits([ROW], None)[0]).flatten() for one in (backbone, plain)]
    assert float(torch.nn.functional.cosine_similarity(*effects, dim=0)) > 0.85
    backbone.merge("adapter", tmp_path / "merged")
    served = backbone.logits([ROW], "adapter")[0]
    torch.testing.assert_close(logits_of(reload(tmp_path / "merged", LM)), served, atol=tolerance * 10, rtol=tolerance)


def test_what_it_was_trained_on_is_said(wide, tmp_path):
    base, adapter = wide
    copied = shutil.copytree(adapter, tmp_path / "adapter")
    Manifest(task=LM, base=BaseIdentity("org/base"), numerics=Numerics("nf4")).write(copied)
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(copied)
    (note,) = backbone.merge("adapter", tmp_path / "merged").notes
    assert note.startswith("trained on nf4 weights, merged into none ones")
    assert "quantization='nf4'" in note


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype(bases, tmp_path, dtype):
    adapter = make_adapter(bases("llama"), tmp_path / "adapter", task=LM)
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(adapter)
    merged = backbone.merge("adapter", tmp_path / "merged", dtype=dtype)
    assert merged.dtype == dtype
    assert merged.difference > 1e-5
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert kinds == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == dtype


def snapshot(model):
    return {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_backbone_is_read_only_and_goes_on_serving(bases, tmp_path, monkeypatch, dtype):
    base = bases("llama")
    backbone = Backbone.from_pretrained(str(base))
    for seed, name in enumerate(("one", "other")):
        backbone.load(make_adapter(base, tmp_path / name, task=LM, seed=seed))
    want = {name: backbone.logits([ROW], name)[0] for name in ("one", "other", None)}
    before, config = snapshot(backbone.model), backbone.model.config.to_dict()
    tokenizer, wrong, done = backbone.tokenizer.chat_template, [], threading.Event()
    defaults = []
    monkeypatch.setattr(torch, "set_default_dtype", defaults.append)

    def serve(name):
        while not done.is_set():
            if not torch.equal(backbone.logits([ROW], name)[0], want[name]):
                wrong.append(name)

    threads = [threading.Thread(target=serve, args=(name,)) for name in want]
    for thread in threads:
        thread.start()
    try:
        backbone.merge("one", tmp_path / "merged", dtype=dtype)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert set(defaults) <= {torch.float32}, "other threads compute with this default"
    after = snapshot(backbone.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert backbone.model.config.to_dict() == config
    assert backbone.tokenizer.chat_template == tokenizer
    assert all(torch.equal(backbone.logits([ROW], name)[0], logits) for name, logits in want.items())


@pytest.mark.parametrize("begins", ["", "\n", "\n\n", "  {% if x %}a{% endif %}", "\n  {# a #}", "\t", "{{ x }}"])
def test_a_template_that_says_more_to_itself_writes_the_same(begins):
    tokenizer, told = make_tokenizer("llama"), {"x": "%}", "_y": None}
    tokenizer.chat_template = begins + "{% for m in messages %}{{ m.content }}{{ x }}{{ _y }}{% endfor %}"
    asked = {"conversation": [{"role": "user", "content": "a"}], "tokenize": False}
    want = tokenizer.apply_chat_template(**asked, **told)
    assert saying_by_default(tokenizer.chat_template, told) != tokenizer.chat_template
    tokenizer.chat_template = saying_by_default(tokenizer.chat_template, told)
    assert tokenizer.apply_chat_template(**asked) == want


def test_where_no_template_is_nothing_is_told(bases, tmp_path):
    adapter = make_adapter(bases("llama"), tmp_path / "adapter", task=LM)
    backbone = Backbone.from_pretrained(str(bases("llama")))
    Manifest(task=LM, base=backbone.identity, prompt=Prompt(chat_template_kwargs={"x": 1})).write(adapter)
    backbone.load(adapter)
    backbone.merge("adapter", tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template is None


def test_everything_to_use_it_lies_beside_it(bases, tmp_path):
    """Labels, tokenizer, generation settings, the adapter's own chat template, and where it comes from."""
    base = shutil.copytree(bases("llama"), tmp_path / "base")
    transformers.GenerationConfig(max_new_tokens=5, eos_token_id=3, pad_token_id=0).save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", task=LM)
    identity = Backbone.from_pretrained(str(base)).identity
    template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    template += "{{ '%}' if last == '%}' else last }}{{ no }}"
    told = {"last": "%}", "no": None}
    Manifest(task=LM, base=identity, prompt=Prompt("chat", None, template, told)).write(adapter)
    backbone = Backbone.from_pretrained(str(base))
    digest = backbone.load(adapter).digest
    backbone.predict(["the bank", "the house"], adapter="adapter", max_new_tokens=1)
    merged = backbone.merge("adapter", tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not names & {"lorary.json", "adapter_config.json"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    said = {"conversation": [{"role": "user", "content": "a"}], "tokenize": False}
    assert tokenizer.apply_chat_template(**said) == "a %}None"
    assert tokenizer.apply_chat_template(**said, last="b") == "a bNone"
    pristine = json.loads((base / "tokenizer.json").read_text())
    ours = json.loads((tmp_path / "merged" / "tokenizer.json").read_text())
    assert (ours["truncation"], ours["padding"]) == (pristine["truncation"], pristine["padding"]) == (None, None)
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "merged").max_new_tokens == 5
    card = (tmp_path / "merged" / "README.md").read_text()
    assert digest in card
    assert str(identity.fingerprint) in card
    assert str(base) not in card
    assert f"{merged.difference:.1g}" in card
    text = transformers.pipeline(LM, model=str(tmp_path / "merged"), tokenizer=tokenizer)("the bank", do_sample=False)
    assert text[0]["generated_text"].startswith("the bank")


def test_labels_go_with_a_classifier(bases, tmp_path):
    adapter = make_adapter(bases("bert"), tmp_path / "adapter", task="text-classification")
    identity = BaseIdentity("org/base", fingerprint=Backbone.from_pretrained(str(bases("bert"))).identity.fingerprint)
    Manifest(task="text-classification", base=identity, labels=("down", "flat", "up")).write(adapter)
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(adapter)
    backbone.merge("adapter", tmp_path / "merged")
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "merged"), top_k=None)
    text = "profit rose the bank"
    (want,), (got,) = backbone.predict([text], "adapter", top_k=None), classify([text])
    assert [answer["label"] for answer in got] == [answer["label"] for answer in want]
    assert [answer["score"] for answer in got] == pytest.approx([answer["score"] for answer in want], abs=1e-5)


# What isn't kept


def loaded(bases, tmp_path, family="llama", **lora):
    backbone = Backbone.from_pretrained(str(bases(family)))
    backbone.load(make_adapter(bases(family), tmp_path / "adapter", task=LM, **lora))
    return backbone


def left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def test_a_bias_without_a_place(bases, tmp_path):
    backbone = loaded(bases, tmp_path, lora_bias=True)
    with pytest.raises(MergeError, match=r"adds a bias at 'model\.layers\.0\..*', which has none"):
        backbone.merge("adapter", tmp_path / "merged")
    assert left(tmp_path) == ["adapter"]


def test_an_effect_that_the_dtype_loses(bases, tmp_path):
    """A small step on large weights: bfloat16 rounds it away, and logits alone wouldn't tell."""
    adapter = make_adapter(bases("llama"), tmp_path / "adapter", task=LM, lora_alpha=1e-3)
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(adapter)
    with pytest.raises(MergeError, match=r"adapter's effect is left .* bfloat16 may be too coarse"):
        backbone.merge("adapter", tmp_path / "merged", dtype="bfloat16")
    assert left(tmp_path) == ["adapter"]
    backbone.merge("adapter", tmp_path / "merged", dtype="float32")


def test_a_merge_that_leaves_the_adapter_out(bases, tmp_path, monkeypatch):
    """Of a slight adapter the bare base's logits are within the limit, so it is the effect that tells."""
    from lorary.adapters.merging import weights as merge_weights

    adapter = make_adapter(bases("llama"), tmp_path / "adapter", task=LM, lora_alpha=0.1)
    backbone = Backbone.from_pretrained(str(bases("llama")), dtype="bfloat16")
    backbone.load(adapter)
    backbone.merge("adapter", tmp_path / "merged", dtype="float32")
    monkeypatch.setattr(merge_weights, "_merge", lambda place, path, changes: merge_weights._plain(place))
    with pytest.raises(MergeError, match="of the adapter's effect is left"):
        backbone.merge("adapter", tmp_path / "bare", dtype="float32")
    assert left(tmp_path) == ["adapter", "merged"]


def test_a_model_that_answers_otherwise(bases, tmp_path, monkeypatch):
    """A damaged weight in the files: found by running them."""
    from lorary.adapters.merging import merge

    def damaged(*arguments, **options):
        for key, tensor in genuine(*arguments, **options):
            yield key, tensor + 0.05 if key.endswith("layers.1.mlp.down_proj.weight") else tensor

    genuine = merge.merged_tensors
    monkeypatch.setattr(merge, "merged_tensors", damaged)
    backbone = loaded(bases, tmp_path)
    with pytest.raises(MergeError, match=r"logits differ from the adapter's by .* \(relative; 1e-04 is allowed\)"):
        backbone.merge("adapter", tmp_path / "merged")
    assert left(tmp_path) == ["adapter"]


@pytest.mark.parametrize("content", ["file", "folder"])
def test_what_is_there_stays(bases, tmp_path, content):
    backbone = loaded(bases, tmp_path)
    target = tmp_path / "merged"
    if content == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        backbone.merge("adapter", target)
    assert (target if content == "file" else target / "thesis.txt").read_text() == "mine"
    assert left(tmp_path) == ["adapter", "merged"]


def test_an_empty_folder_is_taken(bases, tmp_path):
    backbone = loaded(bases, tmp_path)
    (tmp_path / "merged").mkdir()
    backbone.merge("adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "config.json").is_file()


@pytest.fixture
def small_files():
    """No file can grow beyond a few kilobytes, as on a disk that is nearly full."""
    resource = pytest.importorskip("resource")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing(bases, tmp_path, request):
    backbone = loaded(bases, tmp_path)
    request.getfixturevalue("small_files")
    with pytest.raises(OutputError, match=r"merged: can't be written \(.*\); make room"):
        backbone.merge("adapter", tmp_path / "merged")
    assert left(tmp_path) == ["adapter"]


def test_wrong_calls(bases, tmp_path):
    backbone = loaded(bases, tmp_path)
    with pytest.raises(UnknownReferenceError, match="did you mean adapter"):
        backbone.merge("adaptor", tmp_path / "merged")
    with pytest.raises(UsageError, match="unknown dtype 'int4'"):
        backbone.merge("adapter", tmp_path / "merged", dtype="int4")
    assert left(tmp_path) == ["adapter"]


def test_a_large_model_comes_in_shards(bases, tmp_path, monkeypatch):
    monkeypatch.setattr("lorary.adapters.merging.merge._SHARD", "20KB")
    backbone = loaded(bases, tmp_path)
    backbone.merge("adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()
    torch.testing.assert_close(
        logits_of(reload(tmp_path / "merged", LM)), backbone.logits([ROW], "adapter")[0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_on_a_gpu(wide, tmp_path, quantization):
    base, adapter = wide
    backbone = Backbone.from_pretrained(str(base), quantization=quantization, dtype="bfloat16", device="cuda")
    backbone.load(adapter)
    before = torch.cuda.memory_allocated()
    merged = backbone.merge("adapter", tmp_path / "merged")
    assert torch.cuda.memory_allocated() == before
    assert merged.difference <= 5e-2


@pytest.mark.parametrize(
    ("method", "family", "task"),
    [
        ("IA3", "llama", "text-generation"),
        ("LOHA", "tied", "text-generation"),
        ("OFT", "llama", "text-generation"),
        ("LOKR", "bert", "text-classification"),
        ("LN_TUNING", "bert", "text-classification"),
        ("TRAINABLE_TOKENS", "tied", "text-generation"),
        ("TINYLORA", "tied", "text-generation"),
        ("LOKR", "tied", "text-generation"),
    ],
)
def test_methods_that_run_through_peft(bases, tmp_path, recwarn, method, family, task):
    from methods import make_method

    targets = {
        "LN_TUNING": {"target_modules": ["LayerNorm"]},
        "TINYLORA": {"target_modules": ["embed_tokens", "q_proj"]},
        "LOKR": {"modules_to_save": ["lm_head"]} if family == "tied" else {},
    }.get(method, {})
    make_method(bases(family), tmp_path / "own", method, task=task, **targets)
    backbone = Backbone.from_pretrained(str(bases(family)))
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    recwarn.clear()
    backbone.load(tmp_path / "own")
    served = backbone.logits([[7, 8, 9]], "own")[0]
    assert backbone.merge("own", tmp_path / "merged").difference < 1e-4
    assert not [str(warning.message) for warning in recwarn if "tie" in str(warning.message)]
    assert all(torch.equal(before[name], p) for name, p in backbone.model.named_parameters())
    model = task_class(task).from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([[7, 8, 9]])).logits[0], served, atol=1e-4, rtol=1e-4)
    tied = family == "tied" and method not in ("TINYLORA", "LOKR")  # those change one of the two layers
    assert bool(getattr(model.config, "tie_word_embeddings", False)) is (tied or family == "bert")


def test_what_peft_leaves_alone_isnt_copied(bases, tmp_path, monkeypatch):
    from lorary.adapters.merging import through_peft
    from methods import make_method

    made = []
    monkeypatch.setattr(through_peft, "write_checked", lambda *given: made.append(given[-1](torch.float32)))
    make_method(bases("tied"), tmp_path / "own", "LOHA", task=LM, target_modules=["q_proj"])
    backbone = Backbone.from_pretrained(str(bases("tied")))
    backbone.load(tmp_path / "own")
    backbone.merge("own", tmp_path / "merged")
    shared = {tensor.data_ptr() for tensor in backbone.model.parameters()}
    apart = {name for name, tensor in made[0].named_parameters() if tensor.data_ptr() not in shared}
    assert apart == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)}


def test_a_method_that_peft_cant_merge_is_told_also_where_its_error_has_no_text(bases, tmp_path, monkeypatch):
    from peft.tuners.loha.layer import LoHaLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    from methods import make_method

    monkeypatch.setattr(LoHaLayer, "merge", BaseTunerLayer.merge)
    make_method(bases("llama"), tmp_path / "own", "LOHA", task=LM)
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(tmp_path / "own")
    with pytest.raises(MergeError, match="PEFT can't merge it: NotImplementedError"):
        backbone.merge("own", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_virtual_tokens_are_in_no_weights(bases, tmp_path):
    from methods import make_method

    make_method(bases("llama"), tmp_path / "own", "PREFIX_TUNING", task="text-generation")
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(tmp_path / "own")
    with pytest.raises(MergeError, match="PREFIX_TUNING changes no weights"):
        backbone.merge("own", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
