"""Fill-mask with the base's own head, against transformers' pipeline over the same model in PEFT's hands."""

import pytest
import torch
from peft import LoHaConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, pipeline

from lorary.adapters import Backbone
from lorary.hub.errors import KeyMismatchError, UnsupportedAdapterError, UsageError
from lorary.hub.manifest import BaseIdentity, Manifest
from tiny import default_targets, make_adapter, make_config, make_tokenizer, peft_reference

TEXTS = ["profit [MASK] the bank", "patient [MASK] asthma and cancer"]
HEADS = {"bert": "cls", "roberta": "lm_head", "distilbert": "vocab_transform"}
DENSE = {"bert": "cls.predictions.transform.dense", "roberta": "lm_head.dense", "distilbert": "vocab_transform"}


@pytest.fixture(scope="session")
def masked_bases(tmp_path_factory):
    """A function that gives the folder of a tiny masked language model of a family."""
    made = {}

    def base(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("masked") / family
            torch.manual_seed(0)
            model = AutoModelForMaskedLM.from_config(make_config(family))
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
            model.save_pretrained(made[family])
            make_tokenizer(family).save_pretrained(made[family])
        return made[family]

    return base


def fill_mask_adapter(base, folder, **lora):
    make_adapter(base, folder, task="fill-mask", **lora)
    Manifest("fill-mask", BaseIdentity("x")).write(folder)
    return folder


def assert_same_fillings(got, want):
    assert type(got) is type(want)
    if isinstance(want, list):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_same_fillings(one, other)
        return
    assert {key: got[key] for key in got if key != "score"} == {key: want[key] for key in want if key != "score"}
    assert got["score"] == pytest.approx(want["score"], abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "bart"])
@pytest.mark.parametrize("params", [{}, {"top_k": 2}, {"targets": ["bank", "cash"]}], ids=str)
def test_equals_the_pipeline(masked_bases, tmp_path, family, params):
    folder = fill_mask_adapter(masked_bases(family), tmp_path / "it")
    backbone = Backbone.from_pretrained(str(masked_bases(family)))
    backbone.load(folder)
    model = peft_reference(masked_bases(family), folder, task="fill-mask").base_model.model
    reference = pipeline("fill-mask", model=model, tokenizer=backbone.tokenizer)
    assert_same_fillings(backbone.predict(TEXTS, "it", **params), reference(TEXTS, **params))
    assert_same_fillings(backbone.predict(TEXTS[0], "it", **params), reference(TEXTS[0], **params))
    two = "profit [MASK] the [MASK]"
    assert_same_fillings(backbone.predict(two, "it", **params), reference(two, **params))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("targets", ["body", "head"])
def test_an_adapter_of_another_method_fills_through_peft(masked_bases, tmp_path, family, targets):
    """In a masked language model of its own, which leaves the backbone and the head of the others as they are."""
    base, folder = masked_bases(family), tmp_path / "it"
    torch.manual_seed(3)
    model = AutoModelForMaskedLM.from_pretrained(base)
    reached = {"body": [default_targets(model)[0]], "head": [DENSE[family]]}[targets]
    peft_model = get_peft_model(model, LoHaConfig(r=4, alpha=8, target_modules=reached, init_weights=False))
    peft_model.save_pretrained(folder)
    Manifest("fill-mask", BaseIdentity("x")).write(folder)

    backbone = Backbone.from_pretrained(str(base))
    backbone.load(fill_mask_adapter(base, tmp_path / "slot"))
    others = backbone.predict(TEXTS, "slot")
    loaded = backbone.load(folder)
    assert loaded.labels is None
    reference = pipeline("fill-mask", model=peft_model.eval().base_model.model, tokenizer=backbone.tokenizer)
    assert_same_fillings(backbone.predict(TEXTS, "it"), reference(TEXTS))
    assert_same_fillings(backbone.predict(TEXTS, ["slot", "it"])[0], others[0])
    backbone.unload("it")
    assert_same_fillings(backbone.predict(TEXTS, "slot"), others)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("kind", ["updated", "dora", "bias", "whole", "output"])
def test_adapters_that_changed_the_head_have_their_own(masked_bases, tmp_path, family, kind):
    """One adapter's changes of the head are not another's, nor the base's."""
    base = masked_bases(family)
    output = {"bert": "decoder", "roberta": "decoder", "distilbert": "vocab_projector"}[family]
    lora = {
        "updated": {"target_modules": "all-linear"},
        "dora": {"target_modules": "all-linear", "use_dora": True},
        "bias": {"target_modules": "all-linear", "lora_bias": True},
        "whole": {"modules_to_save": [HEADS[family]]},
        "output": {"target_modules": ["query", "q_lin", output]},
    }
    backbone = Backbone.from_pretrained(str(base))
    folders = [
        fill_mask_adapter(base, tmp_path / "plain", seed=1, target_modules=["query", "q_lin"]),
        fill_mask_adapter(base, tmp_path / "own", seed=2, **lora[kind]),
    ]
    keys = load_file(folders[1] / "adapter_model.safetensors").keys()
    assert any(HEADS[family] in key or output in key for key in keys)
    for folder in folders:
        backbone.load(folder)
    rows = backbone.tokenizer(TEXTS)["input_ids"]
    for folder in folders:
        reference = peft_reference(base, folder, task="fill-mask")
        for row in rows:
            with torch.no_grad():
                want = reference(input_ids=torch.tensor([row])).logits[0]
            torch.testing.assert_close(backbone.logits([row], folder.name)[0], want, atol=1e-5, rtol=1e-5)
    mixed = backbone.predict([TEXTS[0]] * 3, ["plain", "own", "plain"])
    assert_same_fillings(mixed[:2], [backbone.predict(TEXTS[0], name) for name in ("plain", "own")])
    saved, state = load_file(folders[1] / "adapter_model.safetensors"), backbone.state("own")
    assert state.keys() == saved.keys()
    for key, tensor in saved.items():
        # The test's magnitudes are far from their norms, so taking DoRA's ratio out again costs digits.
        tolerance = 1e-3 if kind == "dora" else 1e-6
        torch.testing.assert_close(state[key], tensor, atol=tolerance, rtol=tolerance)


def test_the_head_runs_for_masks_only(masked_bases, tmp_path):
    """A vocabulary of logits for every token of a batch would be most of its memory."""
    backbone = backbone_with(masked_bases("bert"), fill_mask_adapter(masked_bases("bert"), tmp_path / "it"))
    sizes = []
    head = backbone._residency.get("it").head.model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, output: sizes.append(tuple(output.shape)))
    backbone.predict([*TEXTS, "a [MASK] and a [MASK]"], "it")
    assert sizes == [(1, 4, 44)]


def test_all_adapters_share_the_bases_head(masked_bases, tmp_path):
    backbone = Backbone.from_pretrained(str(masked_bases("bert")))
    for seed in (1, 2):
        folder = tmp_path / f"a{seed}"
        backbone.load(fill_mask_adapter(masked_bases("bert"), folder, seed=seed, target_modules=["query"]))
    one, two = (backbone._residency.get(name).head.model for name in ("a1", "a2"))
    assert one is two
    assert one.get_output_embeddings().weight is backbone.body.get_input_embeddings().weight


def test_a_model_in_memory_brings_its_head(masked_bases, tmp_path):
    folder = fill_mask_adapter(masked_bases("bert"), tmp_path / "it")
    model = AutoModelForMaskedLM.from_pretrained(masked_bases("bert"))
    backbone = Backbone.from_model(model, make_tokenizer("bert"))
    model.config._name_or_path = "nowhere/to-be-found"
    backbone.load(folder)
    assert backbone.predict(TEXTS, "it") == backbone_with(masked_bases("bert"), folder).predict(TEXTS, "it")


def backbone_with(base, folder):
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(folder)
    return backbone


def test_a_base_without_the_head_is_refused(bases, masked_bases, tmp_path):
    """`bases` saves bare bodies, as many embedding models are published."""
    folder = fill_mask_adapter(masked_bases("bert"), tmp_path / "it", target_modules=["query"])
    backbone = Backbone.from_pretrained(str(bases("bert")))
    with pytest.raises(UnsupportedAdapterError, match=r"own masked-language-modelling head.*lack.*cls\.predictions"):
        backbone.load(folder)
    llama = Backbone.from_pretrained(str(bases("llama")))
    with pytest.raises(UnsupportedAdapterError, match="no fill-mask head for the architecture 'llama'"):
        llama.load(folder)
    assert backbone.adapters == []


def test_an_adapter_of_the_head_alone_is_refused(masked_bases, tmp_path):
    folder = fill_mask_adapter(masked_bases("bert"), tmp_path / "it", target_modules=[DENSE["bert"]])
    backbone = Backbone.from_pretrained(str(masked_bases("bert")))
    with pytest.raises(UnsupportedAdapterError, match="updates nothing but the head"):
        backbone.load(folder)


def test_files_that_changed_since_are_noticed(masked_bases, tmp_path):
    import shutil

    base = shutil.copytree(masked_bases("bert"), tmp_path / "base")
    backbone = Backbone.from_pretrained(str(base))
    torch.manual_seed(9)
    AutoModelForMaskedLM.from_config(make_config("bert")).save_pretrained(base)
    with pytest.raises(UnsupportedAdapterError, match="another model than the backbone in memory"):
        backbone.load(fill_mask_adapter(masked_bases("bert"), tmp_path / "it"))


def test_a_head_with_keys_missing_is_refused(masked_bases, tmp_path):
    from safetensors.torch import save_file

    folder = fill_mask_adapter(masked_bases("bert"), tmp_path / "it", target_modules="all-linear")
    path = folder / "adapter_model.safetensors"
    kept = {key: value for key, value in load_file(path).items() if "cls.predictions" not in key}
    save_file(kept, path)
    backbone = Backbone.from_pretrained(str(masked_bases("bert")))
    with pytest.raises(KeyMismatchError, match=r"missing: .*cls\.predictions\.transform\.dense\.lora_A"):
        backbone.load(folder)


def test_rows_without_a_mask(masked_bases, tmp_path):
    backbone = backbone_with(masked_bases("bert"), fill_mask_adapter(masked_bases("bert"), tmp_path / "it"))
    with pytest.raises(UsageError, match=r"has no \[MASK\] within its first 64 tokens"):
        backbone.predict("profit rose", "it")
    with pytest.raises(UsageError, match=r"has no \[MASK\]"):
        backbone.predict("profit " * 80 + "[MASK]", "it")
    for top_k in (0, 45, "two"):
        with pytest.raises(UsageError, match="expected a whole number from 1 to 44"):
            backbone.predict(TEXTS, "it", top_k=top_k)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_the_head_stays_whole_on_a_quantized_base(masked_bases, tmp_path, quantization):
    """The body is quantized, the head isn't; a row's answer doesn't depend on the tasks beside it."""
    base = masked_bases("bert")
    backbone = Backbone.from_pretrained(str(base), quantization=quantization)
    for name, lora in (("shared", {"target_modules": ["query"]}), ("own", {"target_modules": "all-linear"})):
        backbone.load(fill_mask_adapter(base, tmp_path / name, **lora))
    backbone.load(make_adapter(base, tmp_path / "qa", task="question-answering"))
    kinds = {type(module) for module in backbone._residency.get("shared").head.model.cls.modules()}
    assert torch.nn.Linear in kinds
    assert not {kind.__name__ for kind in kinds} & {"Linear4bit", "Linear8bitLt"}
    rows = [TEXTS[0], {"question": "profit", "context": "profit rose the bank"}, TEXTS[1]]
    names = ["shared", "qa", "own"]
    mixed = backbone.predict(rows, names)
    solo = [backbone.predict([row], name)[0] for row, name in zip(rows, names, strict=True)]
    assert_same_fillings(mixed[::2], solo[::2])
    assert mixed[1]["answer"] == solo[1]["answer"]
    assert mixed[1]["score"] == pytest.approx(solo[1]["score"], abs=1e-5)
