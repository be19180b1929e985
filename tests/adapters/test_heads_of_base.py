"""Head layers that a task class shares with what its base was pretrained with: PEFT saves the last layer alone."""

import pytest
import torch
import transformers
from peft import LoHaConfig, LoraConfig, PeftModel, TaskType, get_peft_model

from lorary.adapters import Backbone
from lorary.hub.errors import KeyMismatchError
from tiny import VOCABULARY, make_config, make_tokenizer

ROW = [2, 9, 12, 15, 3]
CONFIGS = {
    "lora": LoraConfig(r=4, target_modules=["Wqkv"], task_type=TaskType.SEQ_CLS),
    "loha": LoHaConfig(r=4, target_modules=["Wqkv"], task_type=TaskType.SEQ_CLS),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny ModernBERT as it is published: with its masked-language-modelling head."""
    folder = tmp_path_factory.mktemp("modernbert")
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, local_attention=16, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2,
        sep_token_id=3,
    )  # fmt: skip
    model = transformers.ModernBertForMaskedLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return folder


def adapter(base, folder, config, model_class=transformers.ModernBertForSequenceClassification):
    torch.manual_seed(1)
    peft_model = get_peft_model(model_class.from_pretrained(base, num_labels=3), config)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    peft_model.save_pretrained(folder)
    return folder


def peft_logits(base, folder, model_class):
    """What PEFT answers for ``ROW``: [labels]."""
    plain = PeftModel.from_pretrained(model_class.from_pretrained(base, num_labels=3), folder).eval()
    with torch.no_grad():
        return plain(input_ids=torch.tensor([ROW])).logits[0]


@pytest.mark.parametrize("method", list(CONFIGS))
@pytest.mark.parametrize("opened", ["files", "memory"])
def test_the_base_brings_the_layers_that_the_adapter_doesnt(base, tmp_path, method, opened):
    folder = adapter(base, tmp_path / "a", CONFIGS[method])
    if opened == "files":
        backbone = Backbone.from_pretrained(str(base))
    else:
        model = transformers.ModernBertForMaskedLM.from_pretrained(base)
        model.config._name_or_path = "nowhere"
        backbone = Backbone.from_model(model, make_tokenizer("bert"))
    backbone.load(folder, "a")
    expected = peft_logits(base, folder, transformers.ModernBertForSequenceClassification)
    assert torch.allclose(backbone.logits([ROW], "a")[0], expected, atol=1e-5)


def test_reading_them_leaves_the_default_dtype_alone(base, tmp_path, default_dtypes):
    published = tmp_path / "published"
    transformers.ModernBertForMaskedLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(published)
    make_tokenizer("bert").save_pretrained(published)
    folder = adapter(published, tmp_path / "a", CONFIGS["lora"])
    backbone = Backbone.from_pretrained(str(published))
    default_dtypes.clear()
    backbone.load(folder, "a")
    assert default_dtypes <= {torch.float32}
    expected = peft_logits(published, folder, transformers.ModernBertForSequenceClassification)
    assert torch.allclose(backbone.logits([ROW], "a")[0], expected.float(), atol=5e-2)


def test_the_random_head_of_a_model_in_memory_is_nobodys(base, tmp_path):
    """transformers makes one for a task that the files are not of."""
    from safetensors.torch import load_file, save_file

    folder = adapter(base, tmp_path / "a", CONFIGS["lora"])
    tensors = load_file(folder / "adapter_model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith("classifier.bias")}
    save_file(kept, folder / "adapter_model.safetensors")
    model = transformers.ModernBertForSequenceClassification.from_pretrained(base, num_labels=3)
    backbone = Backbone.from_model(model, make_tokenizer("bert"))
    with pytest.raises(KeyMismatchError, match=r"missing: classifier\.bias"):
        backbone.load(folder, "a")


def test_what_neither_has_is_lost(base, tmp_path):
    """PEFT keeps `qa_outputs` for question answering, and ModernBERT's last layer is a `classifier`."""
    config = LoraConfig(r=4, target_modules=["Wqkv"], task_type=TaskType.QUESTION_ANS)
    folder = adapter(base, tmp_path / "a", config, transformers.ModernBertForQuestionAnswering)
    with pytest.raises(
        KeyMismatchError, match=r"Answering\. missing: classifier\.bias; missing: classifier\.weight\. "
    ):
        Backbone.from_pretrained(str(base)).load(folder)
    bare = tmp_path / "bare"
    transformers.ModernBertModel.from_pretrained(base).save_pretrained(bare)
    with pytest.raises(KeyMismatchError, match=r"missing: head\.dense\.weight; missing: head\.norm\.weight\. "):
        Backbone.from_pretrained(str(bare)).load(adapter(base, tmp_path / "b", CONFIGS["lora"]))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A tiny BART that was trained for entailment: its head of three labels is in the base's files."""
    folder = tmp_path_factory.mktemp("bart")
    model = transformers.BartForSequenceClassification(make_config("bart", num_labels=3))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    make_tokenizer("bart").save_pretrained(folder)
    return folder


def test_factors_in_the_head_of_the_base_say_how_many_labels_there_are(classifier, tmp_path):
    """`all-linear` reaches BART's head, whose factors PEFT saves in the place of the head itself."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type=TaskType.SEQ_CLS)
    folder = adapter(classifier, tmp_path / "a", config, transformers.BartForSequenceClassification)
    backbone = Backbone.from_pretrained(str(classifier))
    backbone.load(folder, "a")
    expected = peft_logits(classifier, folder, transformers.BartForSequenceClassification)
    assert torch.allclose(backbone.logits([ROW], "a")[0], expected, atol=1e-5)


def test_an_attentions_output_says_nothing_of_the_labels(tmp_path):
    """OPT's is an `out_proj`, as the last layer of many heads is, and comes before its `score`."""
    base = tmp_path / "opt"
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    transformers.OPTForCausalLM(config).save_pretrained(base)
    make_tokenizer("gpt2").save_pretrained(base)
    for targets, kept in ((["out_proj"], ["score"]), (["v_proj"], ["score", "out_proj"])):
        lora = LoraConfig(r=4, target_modules=targets, modules_to_save=kept, task_type=TaskType.SEQ_CLS)
        folder = adapter(base, tmp_path / targets[0], lora, transformers.OPTForSequenceClassification)
        backbone = Backbone.from_pretrained(str(base))
        backbone.load(folder, "a")
        expected = peft_logits(base, folder, transformers.OPTForSequenceClassification)
        assert torch.allclose(backbone.logits([ROW], "a")[0], expected, atol=1e-5)


def test_factors_in_a_head_that_nobody_has_are_lost(classifier, tmp_path):
    bare = tmp_path / "bare"
    transformers.BartModel.from_pretrained(classifier).save_pretrained(bare)
    make_tokenizer("bart").save_pretrained(bare)
    config = LoraConfig(r=4, target_modules="all-linear", task_type=TaskType.SEQ_CLS)
    folder = adapter(bare, tmp_path / "a", config, transformers.BartForSequenceClassification)
    with pytest.raises(KeyMismatchError, match=r"missing: classification_head\.dense\.bias.* is lost"):
        Backbone.from_pretrained(str(bare)).load(folder)
