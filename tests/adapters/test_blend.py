"""Blends against PEFT's `add_weighted_adapter` on the same checkpoints, and what can't be blended."""

import json

import pytest
import torch
from peft import PeftModel
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file

from lorary.adapters import Backbone
from lorary.adapters.blending.combination import COMBINATIONS, Combination, Combiner
from lorary.adapters.blending.contents import read_contents
from lorary.adapters.layer.slots import LowRank
from lorary.adapters.proving.golden import write_golden
from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.errors import (
    BaseMismatchError,
    BlendError,
    CheckpointError,
    GoldenMismatchError,
    NoEffectError,
    OutputError,
    RegistryConflictError,
    SlotsFullError,
    UnknownReferenceError,
    UsageError,
)
from lorary.hub.manifest import Answering, BaseIdentity, Manifest, Pooling, Preprocessing
from tiny import VOCABULARY, make_adapter, make_base, make_tokenizer, peft_reference, task_class

ROW = [7, 8, 9, 10, 11]
LM = "text-generation"
SETTINGS = {
    "ties": {"density": 0.5}, "magnitude_prune": {"density": 0.4},
    "ties_svd": {"density": 0.3, "majority_sign": "frequency"}, "magnitude_prune_svd": {"density": 0.5},
}  # fmt: skip


def pair(bases, tmp_path, family="llama", task=LM, first=None, second=None, registry=None):
    """Two adapters, `legal` and `tone`, and a backbone that has both."""
    base = bases(family)
    folders = [
        make_adapter(base, tmp_path / name, task=task, seed=seed, **(lora or {}))
        for seed, (name, lora) in enumerate({"legal": first, "tone": second}.items(), start=1)
    ]
    backbone = Backbone.from_pretrained(str(base), registry=registry)
    for folder in folders:
        backbone.load(folder)
    return backbone, *folders


def logits_of(model):
    with torch.no_grad():
        output = model(torch.tensor([ROW]))
    return (output.logits if hasattr(output, "logits") else output.last_hidden_state)[0]


def peft_with_both(base, legal, tone, task=LM):
    """PEFT's model of both."""
    reference = peft_reference(base, legal, task=task)
    reference.load_adapter(tone, "tone")
    return reference


def peft_blend(reference, weights, kind, **settings):
    """The same blend as PEFT makes it, in a model that has both."""
    names = {"majority_sign": "majority_sign_method", "rank": "svd_rank"}
    settings = {names.get(name, name): value for name, value in settings.items()}
    reference.add_weighted_adapter(["default", "tone"], list(weights), "blend", combination_type=kind, **settings)
    reference.set_adapter("blend")
    made = logits_of(reference.eval())
    reference.delete_adapter("blend")
    return made


@pytest.fixture(scope="module")
def alike(bases, tmp_path_factory):
    """A backbone with two adapters of one shape, and PEFT's model of them."""
    backbone, legal, tone = pair(bases, tmp_path_factory.mktemp("alike"), second={"lora_alpha": 3})
    return backbone, peft_with_both(bases("llama"), legal, tone)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.2, -0.4)], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in COMBINATIONS if not kind.startswith("dare")])
def test_every_kind_is_pefts(alike, kind, weights):
    backbone, reference = alike
    settings = SETTINGS.get(kind, {})
    backbone.blend(dict(zip(("legal", "tone"), weights, strict=True)), "both", combination=kind, **settings)
    got = backbone.logits([ROW], "both")[0]
    backbone.unload("both")
    torch.testing.assert_close(got, peft_blend(reference, weights, kind, **settings), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, backbone.logits([ROW], "legal")[0], atol=1e-3)


@pytest.mark.parametrize("kind", ["cat", "svd"])
@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        ("llama", {"r": 2}, {"r": 7, "lora_alpha": 5}),
        ("llama", {"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["v_proj", "down_proj"], "r": 3}),
        ("llama", {"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"v_proj": 30}, "r": 6}),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["embed_tokens"], "r": 2}),
        ("gpt2", {}, {"r": 2, "target_modules": ["c_attn", "wte"]}),
        ("bert", {}, {"layers_to_transform": [1], "r": 3}),
    ],
    ids=str,
)
def test_unlike_adapters_add_up_as_in_peft(bases, tmp_path, kind, family, first, second):
    task = "feature-extraction" if family == "bert" else LM
    backbone, legal, tone = pair(bases, tmp_path, family, task, first, second)
    backbone.blend({"legal": 0.6, "tone": -0.5}, "both", combination=kind, output=tmp_path / "both")
    got = backbone.logits([ROW], "both")[0]
    want = peft_blend(peft_with_both(bases(family), legal, tone, task), (0.6, -0.5), kind)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    alone = peft_reference(bases(family), tmp_path / "both", task=task)
    torch.testing.assert_close(logits_of(alone), want, atol=1e-5, rtol=1e-5)


def test_the_rank_asked_for(bases, tmp_path):
    backbone, legal, tone = pair(bases, tmp_path)
    loaded = backbone.blend({"legal": 0.7, "tone": 0.3}, "both", combination="svd", rank=2)
    assert loaded.rank == 2
    want = peft_blend(peft_with_both(bases("llama"), legal, tone), (0.7, 0.3), "svd", rank=2)
    torch.testing.assert_close(backbone.logits([ROW], "both")[0], want, atol=2e-5, rtol=1e-5)


def site_deltas(model):
    """Each module's whole update, and that of its bias."""
    return {
        name: (module.get_delta_weight("default"), module.lora_B["default"].bias * module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def test_scales_and_biases_are_in_the_sum(bases, tmp_path):
    """PEFT drops biases, and keeps rsLoRA's root over a rank it changed; so each update is asked for itself."""
    lora = {"lora_bias": True, "use_rslora": True}
    backbone, legal, tone = pair(
        bases, tmp_path, "bert", "feature-extraction", lora, lora | {"use_rslora": False, "r": 3}
    )
    backbone.blend({"legal": 0.6, "tone": -0.5}, "both", output=tmp_path / "both")
    first, second, both = (
        site_deltas(peft_reference(bases("bert"), folder, task="feature-extraction"))
        for folder in (legal, tone, tmp_path / "both")
    )
    assert both.keys() == first.keys()
    for name, parts in both.items():
        for part, one, other in zip(parts, first[name], second[name], strict=True):
            torch.testing.assert_close(part, 0.6 * one - 0.5 * other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties"])
def test_dare_is_pefts_for_the_same_draws(kind):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 8), (6, 3)]
    factors = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2)]
    updates = [LowRank(a, b, None, 1.0) for a, b in factors]
    before = torch.get_rng_state()
    got = Combiner(Combination(kind, density=0.6, seed=5), 3).combine(updates, [0.5, 0.25], "site")
    assert torch.equal(torch.get_rng_state(), before), "other threads draw from this state"
    torch.manual_seed(5)
    weights = torch.tensor([0.5, 0.25]).sqrt()
    for part, tensors in zip((got.a, got.b), zip(*factors, strict=True), strict=True):
        want = getattr(merge_utils, kind)(list(tensors), weights, 0.6)
        torch.testing.assert_close(part, want)


@pytest.mark.parametrize("kind", [kind for kind in COMBINATIONS if kind.startswith("dare")])
def test_a_seed_decides_what_dare_drops(bases, tmp_path, kind):
    backbone, *_ = pair(bases, tmp_path)

    def digest(seed):
        return backbone.blend({"legal": 1, "tone": 1}, "both", combination=kind, density=0.5, seed=seed).digest

    first, again, other = digest(3), digest(3), digest(4)
    assert first == again != other


# Heads


def with_manifest(folder, **fields):
    task = fields.pop("task", "text-classification")
    Manifest(**{"task": task, "base": BaseIdentity("org/tiny"), **fields}).write(folder)
    return folder


def classifiers(bases, tmp_path, second=None, **fields):
    base = bases("bert")
    legal = make_adapter(base, tmp_path / "legal", task="text-classification", seed=1)
    tone = make_adapter(base, tmp_path / "tone", task="text-classification", seed=2, **(second or {}))
    with_manifest(legal, labels=("a", "b", "c"), domain="legal")
    with_manifest(tone, **{"labels": ("a", "b", "c"), "domain": "legal"} | fields)
    backbone = Backbone.from_pretrained(str(base))
    for folder in (legal, tone):
        backbone.load(folder)
    return backbone, legal, tone


def head_of(folder):
    return {
        key: tensor for key, tensor in load_file(folder / "adapter_model.safetensors").items() if "classifier" in key
    }


def test_different_heads_want_a_decision(bases, tmp_path):
    backbone, _, _ = classifiers(bases, tmp_path)
    with pytest.raises(BlendError, match=r"legal and tone differ in head; .*head='legal' or head='tone'.*'average'"):
        backbone.blend({"legal": 0.5, "tone": 0.5}, "both")
    assert backbone.adapters == ["legal", "tone"]


@pytest.mark.parametrize("owner", ["legal", "tone"])
def test_one_adapters_head(bases, tmp_path, owner):
    backbone, legal, tone = classifiers(bases, tmp_path, labels=("x", "y", "z"))
    with_manifest(tone, labels=("x", "y", "z"), domain="tone")
    backbone.load(tone)
    loaded = backbone.blend({"legal": 0.5, "tone": 0.5}, "both", head=owner, output=tmp_path / "both")
    assert read_checkpoint(tmp_path / "both").manifest.domain == owner
    assert loaded.labels == {"legal": ("a", "b", "c"), "tone": ("x", "y", "z")}[owner]
    want = head_of({"legal": legal, "tone": tone}[owner])
    assert want
    for key, tensor in head_of(tmp_path / "both").items():
        assert torch.equal(tensor, want[key])
    with torch.no_grad():
        reference = peft_reference(bases("bert"), tmp_path / "both", task="text-classification")
        want = reference(torch.tensor([ROW])).logits[0]
    torch.testing.assert_close(backbone.logits([ROW], "both")[0], want, atol=1e-5, rtol=1e-5)


def test_the_mean_of_heads(bases, tmp_path):
    backbone, legal, tone = classifiers(bases, tmp_path)
    backbone.blend({"legal": 3, "tone": 1}, "both", head="average", output=tmp_path / "both")
    for key, tensor in head_of(tmp_path / "both").items():
        torch.testing.assert_close(tensor, 0.75 * head_of(legal)[key] + 0.25 * head_of(tone)[key])
    with pytest.raises(BlendError, match="needs weights above 0"):
        backbone.blend({"legal": 3, "tone": -1}, "both", head="average")


def test_no_mean_of_heads_with_other_labels(bases, tmp_path):
    backbone, _, _ = classifiers(bases, tmp_path, labels=("x", "y", "z"))
    with pytest.raises(BlendError, match=r"legal has .*\(a, b, c; .*\), tone has .*\(x, y, z; .*\)"):
        backbone.blend({"legal": 1, "tone": 1}, "both", head="average")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"problem_type": "multi_label_classification"}, r"tone has .*\(a, b, c; multi_label_classification\)"),
        ({"labels": ("a", "c", "b")}, r"tone has .*\(a, c, b; single_label_classification\)"),
    ],
)
def test_no_mean_of_heads_that_are_read_differently(bases, tmp_path, fields, said):
    backbone, _, _ = classifiers(bases, tmp_path, **fields)
    with pytest.raises(BlendError, match=said):
        backbone.blend({"legal": 1, "tone": 1}, "both", head="average")


def test_no_mean_of_a_head_that_knows_no_answer_and_one_that_does_not(bases, tmp_path):
    backbone, legal, tone = pair(bases, tmp_path, "bert", "question-answering")
    for folder, impossible in ((legal, False), (tone, True)):
        with_manifest(folder, task="question-answering", answering=Answering(8, impossible))
        backbone.load(folder)
    with pytest.raises(BlendError, match=r"legal has .*every question answered.*tone has .*'no answer' competes"):
        backbone.blend({"legal": 1, "tone": 1}, "both", head="average")


def test_a_plain_manifest_is_one_of_single_labels(bases, tmp_path):
    backbone, _, _ = classifiers(bases, tmp_path, problem_type="single_label_classification")
    backbone.blend({"legal": 1, "tone": 1}, "both", head="average")


def test_equal_heads_are_kept(bases, tmp_path):
    legal = make_adapter(bases("bert"), tmp_path / "legal", task="text-classification", seed=1)
    tone = make_adapter(bases("bert"), tmp_path / "tone", task="text-classification", seed=2)
    save_file(load_file(tone / "adapter_model.safetensors") | head_of(legal), tone / "adapter_model.safetensors")
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(legal), backbone.load(tone)
    backbone.blend({"legal": 0.5, "tone": 0.5}, "both", output=tmp_path / "both")
    assert all(torch.equal(tensor, head_of(legal)[key]) for key, tensor in head_of(tmp_path / "both").items())


def test_a_domain_adapter_joins_a_classifier(bases, tmp_path):
    """The one calls its modules `encoder...`, the other `bert.encoder...`; only the latter has a head."""
    domain = make_adapter(bases("bert"), tmp_path / "legal", task="feature-extraction", seed=1)
    task = make_adapter(bases("bert"), tmp_path / "tone", task="text-classification", seed=2)
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(domain), backbone.load(task)
    loaded = backbone.blend({"legal": 0.5, "tone": 1}, "both", output=tmp_path / "both")
    assert (loaded.task, loaded.rank) == ("text-classification", 8)
    sites = {key for key in read_checkpoint(tmp_path / "both").tensors if "lora_A" in key}
    assert sites == {key for key in read_checkpoint(task).tensors if "lora_A" in key}


def test_modules_of_the_same_names_aren_t_confused(bases, tmp_path):
    """One adapter on T5's encoder, one on its decoder, whose layers are called the same."""
    stacks = [{"target_modules": rf"{stack}\..*\.q"} for stack in ("encoder", "decoder")]
    backbone, legal, tone = pair(bases, tmp_path, "t5", "seq2seq", *stacks)
    backbone.blend({"legal": 0.7, "tone": 0.3}, "both", output=tmp_path / "both")
    want = {key for folder in (legal, tone) for key in read_checkpoint(folder).tensors}
    assert read_checkpoint(tmp_path / "both").tensors.keys() == want
    assert {key.split(".")[2] for key in want} == {"encoder", "decoder"}


def test_prompts_that_differ_want_a_decision(bases, tmp_path):
    backbone, legal, tone = pair(bases, tmp_path)
    with_manifest(legal, task=LM)
    with_manifest(tone, task=LM, preprocessing=Preprocessing(prefix="tone: "))
    backbone.load(legal), backbone.load(tone)
    with pytest.raises(BlendError, match="differ in preprocessing"):
        backbone.blend({"legal": 1, "tone": 1}, "both")
    backbone.blend({"legal": 1, "tone": 1}, "both", head="tone", output=tmp_path / "both")
    assert read_checkpoint(tmp_path / "both").manifest.preprocessing.prefix == "tone: "


def test_embeddings_pooled_in_two_ways_want_a_decision(bases, tmp_path):
    backbone, legal, tone = pair(bases, tmp_path, "bert", "feature-extraction")
    for folder, mode in ((legal, "mean"), (tone, "cls")):
        with_manifest(folder, task="feature-extraction", pooling=Pooling(mode))
        backbone.load(folder)
    with pytest.raises(BlendError, match="differ in pooling"):
        backbone.blend({"legal": 1, "tone": 1}, "both")


def test_a_tokenizer_of_their_own_comes_along(tmp_path):
    """Its tokens, its template and its end of text; else the blend would be asked in other token ids."""
    base = make_base("llama", tmp_path / "base", vocab_size=VOCABULARY + 8)
    text = "profit <sql> rose"
    for seed, name in enumerate(("legal", "tone"), start=1):
        make_adapter(base, tmp_path / name, task=LM, seed=seed)
        own = make_tokenizer("llama")
        own.add_tokens(["<sql>"])
        own.chat_template, own.eos_token = "{{ messages[0]['content'] }} <sql>", "[CLS]"
        own(["profit"], padding="max_length", max_length=4 * seed)  # left in its file, and no part of it
        own.save_pretrained(tmp_path / name)
    make_adapter(base, tmp_path / "plain", task=LM, seed=3)
    make_adapter(base, tmp_path / "same", task=LM, seed=4)
    make_tokenizer("llama").save_pretrained(tmp_path / "same")
    backbone = Backbone.from_pretrained(str(base))
    for name in ("legal", "tone", "plain", "same"):
        backbone.load(tmp_path / name)
    backbone.blend({"legal": 0.5, "tone": 0.5}, "both", output=tmp_path / "both")
    backbone.load(tmp_path / "both", "again")
    for name in ("both", "again"):
        adapter = backbone._residency.get(name)
        assert adapter.own_tokenizer.tokenizer(text)["input_ids"] == own(text)["input_ids"]
        assert adapter.own_tokenizer.tokenizer.chat_template == own.chat_template
        assert adapter.own_tokenizer.stop_tokens == (2,)
    with pytest.raises(BlendError, match="legal and plain differ in tokenizer; say whose the blend takes over"):
        backbone.blend({"legal": 0.5, "plain": 0.5}, "mix")
    backbone.blend({"legal": 0.5, "plain": 0.5}, "mix", head="plain", output=tmp_path / "mix")
    assert backbone._residency.get("mix").own_tokenizer is None
    backbone.blend({"plain": 0.5, "same": 0.5}, "mix")  # the backbone's own, saved once more


# Refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": {}}, UsageError, "at least one adapter"),
        ({"weights": {"legal": 0, "tone": 1}}, UsageError, "the weight of legal is 0"),
        ({"weights": {"legal": float("nan")}}, UsageError, "the weight of legal is nan"),
        ({"weights": {"legal": 1, "tine": 1}}, UnknownReferenceError, "did you mean tone"),
        (
            {"weights": {"legal": 1e-3}, "combination": "magnitude_prune", "density": 1e-9},
            NoEffectError,
            "keeps nothing",
        ),
        ({"combination": "sum"}, UsageError, "unknown combination 'sum'; expected one of cat, svd, linear"),
        ({"combination": "ties"}, UsageError, "needs a density"),
        ({"combination": "ties", "density": 1.5}, UsageError, "at most 1"),
        ({"density": 0.5}, UsageError, "'cat' doesn't read density"),
        ({"combination": "linear", "rank": 4}, UsageError, "'linear' doesn't read rank"),
        ({"combination": "svd", "rank": 0}, UsageError, "rank=0"),
        ({"combination": "ties", "density": 0.5, "seed": 1}, UsageError, "doesn't read seed"),
        ({"combination": "ties", "density": 0.5, "majority_sign": "loudest"}, UsageError, "total, frequency"),
        ({"head": "law"}, UsageError, "head='law' is none of the blended adapters; expected legal or tone"),
        ({"name": "Legal Tone"}, UsageError, "can't be a name"),
    ],
    ids=str,
)
def test_wrong_calls(bases, tmp_path, options, error, message):
    backbone, *_ = pair(bases, tmp_path)
    call = {"weights": {"legal": 0.7, "tone": 0.3}, "name": "both", **options}
    with pytest.raises(error, match=message):
        backbone.blend(**call, output=tmp_path / "both")
    assert backbone.adapters == ["legal", "tone"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["legal", "tone"]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"use_dora": True}, "is a DoRA adapter; its magnitudes"),
        (
            {"modules_to_save": ["down_proj"], "target_modules": ["q_proj"]},
            "trained 'model.layers.0.mlp.down_proj' whole",
        ),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "trained 'lm_head' whole"),
    ],
    ids=str,
)
def test_adapters_that_are_no_sum(bases, tmp_path, lora, message):
    backbone, *_ = pair(bases, tmp_path, second=lora)
    with pytest.raises(BlendError, match=message):
        backbone.blend({"legal": 1, "tone": 1}, "both")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"trainable_token_indices": [3, 5]}, r"has trainable_token_indices \(rows of the embedding"),
        ({"bias": "lora_only"}, r"has bias \(biases of the base"),
    ],
    ids=str,
)
def test_what_only_peft_runs_is_no_sum(bases, tmp_path, lora, message):
    folder = make_adapter(bases("llama"), tmp_path / "tone", task=LM, **lora)
    with pytest.raises(BlendError, match=message):
        read_contents(read_checkpoint(folder))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_adapters_without_a_task_type_blend_into_their_own_task(bases, tmp_path, family):
    task = "seq2seq" if family == "t5" else LM
    backbone, *_ = pair(bases, tmp_path, family, task, {"task_type": None}, {"task_type": None})
    made = backbone.blend({"legal": 0.5, "tone": 0.5}, name="mix", output=tmp_path / "mix")
    assert made.task == LM
    assert backbone.generate("profit", "mix", max_new_tokens=3)


def test_unequal_ranks_want_another_kind(bases, tmp_path):
    backbone, *_ = pair(bases, tmp_path, second={"r": 2})
    with pytest.raises(BlendError, match=r"needs equal ranks; at 'model.layers.0.mlp.down_proj' they are 2 and 4"):
        backbone.blend({"legal": 1, "tone": 1}, "both", combination="linear")


@pytest.mark.parametrize("kind", ["cat", "linear", "svd"])
def test_what_cancels_out_is_refused(bases, tmp_path, kind):
    backbone, legal, _ = pair(bases, tmp_path)
    backbone.load(legal, "again")
    with pytest.raises(NoEffectError, match="cancel out"):
        backbone.blend({"legal": 0.7, "again": -0.7}, "none", combination=kind)


def test_adapters_of_two_bases(bases, tmp_path):
    backbone, legal, tone = pair(bases, tmp_path)
    with_manifest(legal, task=LM, base=BaseIdentity("org/one", fingerprint="1" * 64))
    with_manifest(tone, task=LM, base=BaseIdentity("org/two", fingerprint="2" * 64))
    for folder in (legal, tone):
        backbone.load(folder, allow_base_mismatch=True)
    with pytest.raises(BaseMismatchError, match=r"legal was trained on 'org/one' .*, tone on 'org/two'"):
        backbone.blend({"legal": 1, "tone": 1}, "both")


def test_files_that_changed_since(bases, tmp_path):
    backbone, _, tone = pair(bases, tmp_path)
    make_adapter(bases("llama"), tone, task=LM, seed=9)
    with pytest.raises(CheckpointError, match="tone: its files have changed since they were loaded"):
        backbone.blend({"legal": 1, "tone": 1}, "both")


# Where it goes


def test_a_folder_that_holds_something_stays_as_it_is(bases, tmp_path):
    backbone, *_ = pair(bases, tmp_path)
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="isn't empty"):
        backbone.blend({"legal": 1, "tone": 1}, "both", output=tmp_path / "both")
    assert (tmp_path / "both" / "thesis.txt").read_text() == "years of work"


def test_a_blend_that_cant_be_loaded_leaves_nothing(bases, tmp_path, registry):
    base = bases("llama")
    backbone = Backbone.from_pretrained(str(base), slots=2, registry=registry)
    for seed, name in enumerate(("legal", "tone")):
        backbone.load(make_adapter(base, tmp_path / name, task=LM, seed=seed))
        backbone.pin(name)
    with pytest.raises(SlotsFullError):
        backbone.blend({"legal": 1, "tone": 1}, "both", output=tmp_path / "both", register=True, domain="law")
    assert not (tmp_path / "both").exists()
    assert registry.versions() == []


def test_the_catalogue_knows_the_parents(bases, tmp_path, registry):
    base = bases("llama")
    backbone = Backbone.from_pretrained(str(base), registry=registry)
    for seed, name in enumerate(("legal", "tone")):
        registry.add(make_adapter(base, tmp_path / name, task=LM, seed=seed), name=name, domain="law")
        backbone.load(name)
    loaded = backbone.blend(
        {"legal": 0.7, "tone": 0.3}, "both", combination="dare_linear", density=0.5, seed=7, register=True
    )
    assert loaded.reference == "both@1"
    version = registry.resolve("both")
    assert (version.parents, version.strategy, version.domain) == (("legal@1", "tone@1"), "blend", "law")
    told = version.manifest.provenance["blend"]
    assert {key: told[key] for key in ("combination", "density", "seed")} == {
        "combination": "dare_linear", "density": 0.5, "seed": 7,
    }  # fmt: skip
    assert [(part["reference"], part["weight"], part["digest"]) for part in told["adapters"]] == [
        ("legal@1", 0.7, registry.resolve("legal").digest), ("tone@1", 0.3, registry.resolve("tone").digest),
    ]  # fmt: skip
    served = backbone.logits([ROW], "both")[0]
    backbone.load("both@1", "again")
    assert torch.equal(backbone.logits([ROW], "again")[0], served)
    same = {"combination": "dare_linear", "density": 0.5, "seed": 7, "register": True}
    assert backbone.blend({"legal": 0.7, "tone": 0.3}, "both", **same).reference == "both@1"
    assert backbone.blend({"both": 0.5, "legal": 1}, "more", register=True).reference == "more@1"
    assert registry.resolve("more").parents == ("both@1", "legal@1")


def test_a_name_that_is_taken_goes_on_serving(bases, tmp_path, registry):
    """The registry refuses last, after the proof; neither the name nor the folder changes hands."""
    backbone, legal, _ = pair(bases, tmp_path, registry=registry)
    registry.add(legal, name="both", domain="finance")
    backbone.load("both")
    before = backbone.logits([ROW], "both")[0]
    blend = {"weights": {"legal": 1, "tone": 1}, "name": "both", "register": True, "output": tmp_path / "out"}
    with pytest.raises(RegistryConflictError, match=r"'both' stands for finance/text-generation"):
        backbone.blend(**blend, domain="law")
    with pytest.raises(UsageError, match="doesn't say its domain"):
        backbone.blend(**blend)
    assert torch.equal(backbone.logits([ROW], "both")[0], before)
    assert not (tmp_path / "out").exists()
    assert [version.reference for version in registry.versions()] == ["both@1"]


def test_golden_logits_are_what_it_first_answers(bases, tmp_path):
    backbone, legal, tone = pair(bases, tmp_path)
    for folder, rows in ((legal, ((7, 8, 9),)), (tone, ((10, 11), (12, 13, 14)))):
        with_manifest(folder, task=LM, golden_rows=rows)
        write_golden(folder, [torch.zeros(1) for _ in rows])
        backbone.load(folder)
    digest = backbone.blend({"legal": 1, "tone": 1}, "both", output=tmp_path / "both").digest
    again = Backbone.from_pretrained(str(bases("llama")))
    assert again.load(tmp_path / "both").digest == digest
    assert again.verify("both").matches is True
    assert read_checkpoint(tmp_path / "both").manifest.golden_rows == ((7, 8, 9), (10, 11), (12, 13, 14))
    other = Backbone.from_pretrained(str(make_base("llama", tmp_path / "other", seed=5)))
    other.load(tmp_path / "both")
    with pytest.raises(GoldenMismatchError):
        other.verify("both")


def test_a_blend_in_memory_can_be_blended_and_leaves_no_files(bases, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    backbone, *_ = pair(bases, tmp_path)
    backbone.blend({"legal": 1, "tone": 1}, "both")
    backbone.blend({"both": 1, "tone": -1}, "legal-again")
    want, got = (backbone.logits([ROW], name)[0] for name in ("legal", "legal-again"))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert len(list((tmp_path / "scratch").iterdir())) == 2
    del backbone
    import gc

    gc.collect()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_blend_in_memory_comes_back_from_its_files(bases, tmp_path):
    """With one slot and one adapter on the host, each of three pushes the others out to the disk."""
    base = bases("llama")
    backbone = Backbone.from_pretrained(str(base), slots=1, host_adapters=1)
    for seed, name in enumerate(("legal", "tone")):
        backbone.load(make_adapter(base, tmp_path / name, task=LM, seed=seed), lazy=True)
    backbone.blend({"legal": 0.7, "tone": 0.3}, "both")
    want = backbone.logits([ROW], "both")[0]
    for name in ("legal", "tone"):
        backbone.logits([ROW], name)
    before = backbone.stats().disk_reads
    assert torch.equal(backbone.logits([ROW], "both")[0], want)
    assert backbone.stats().disk_reads == before + 1


def test_the_config_says_no_more_than_is_true(bases, tmp_path):
    backbone, *_ = pair(bases, tmp_path, first={"use_rslora": True, "rank_pattern": {"q_proj": 2}})
    backbone.blend({"legal": 1, "tone": 1}, "both", output=tmp_path / "both")
    config = json.loads((tmp_path / "both" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 8, False)
    assert config["rank_pattern"] == config["alpha_pattern"] == {
        rf"^model\.layers\.{layer}\.self_attn\.q_proj": 6 for layer in (0, 1)
    }  # fmt: skip
    reference = PeftModel.from_pretrained(task_class(LM).from_pretrained(bases("llama")), tmp_path / "both").eval()
    torch.testing.assert_close(backbone.logits([ROW], "both")[0], logits_of(reference), atol=1e-5, rtol=1e-5)
