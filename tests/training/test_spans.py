"""Hidden spans: span corruption and text infilling undone, measured, and held against the papers' figures."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lorary.adapters import Backbone
from lorary.adapters.text.gaps import sentinel_ids
from lorary.hub.errors import TrainingError
from lorary.hub.manifest import Filling
from lorary.training import train
from lorary.training.data import Example
from lorary.training.experiments.ablation import _domain_recipe
from lorary.training.fitting.evaluate import outcomes
from lorary.training.fitting.losses import IGNORED
from lorary.training.recipe import Recipe
from lorary.training.tasks import make_task
from lorary.training.tasks.hiding.spans import SpanCorruption, TextInfilling
from lorary.training.tasks.rows.token_rows import Frame, Stream, leave_out, tokenize
from samples import encoder_decoder, text_rows

LENGTHS = (*range(1, 40), 128, 256)


@pytest.fixture(scope="module")
def t5():
    return encoder_decoder("t5-spans")[1]


@pytest.fixture(scope="module")
def bart():
    return encoder_decoder("bart")[1]


def random_ids(length, seed):
    return np.random.default_rng([seed, length]).integers(5, 60, length).tolist()


def undone(feature, tokenizer, before=0):
    """The text that span corruption was done to, put together as the paper tells it."""
    sentinels = sentinel_ids(tokenizer)
    *written, end = feature["labels"]
    assert end == tokenizer.eos_token_id
    spans: dict[int, list[int]] = {}
    for token in written:
        if token in sentinels:
            spans[token] = []
        else:
            spans[next(reversed(spans))].append(token)
    *used, last = spans
    assert [*used, last] == list(sentinels[: len(spans)])  # in order, each once, a last one at the end
    assert spans[last] == []
    read = feature["input_ids"][before:-1]
    assert [token for token in read if token in sentinels] == used
    return [own for token in read for own in (spans[token] if token in sentinels else [token])]


@pytest.mark.parametrize("density", [0.05, 0.15, 0.5, 0.8])
@pytest.mark.parametrize("mean", [1.0, 3.0, 8.0])
def test_span_corruption_is_undone_for_every_length(t5, density, mean):
    corrupts = SpanCorruption(t5, density, mean)
    for length in LENGTHS:
        if corrupts._counts(length)[1] >= len(corrupts.sentinels):
            continue
        for seed in range(3):
            ids = random_ids(length, seed)
            feature = corrupts.hide(ids, None, np.random.default_rng(seed))
            assert undone(feature, t5, before=1) == ids
            assert set(feature["labels"]) - {*corrupts.sentinels, t5.eos_token_id}
            assert (len(feature["input_ids"]), len(feature["labels"])) == corrupts._sizes(length)


def test_noise_density_and_mean_span_are_the_papers(t5):
    corrupts = SpanCorruption(t5, 0.15, 3.0, Frame((), (t5.eos_token_id,)))
    counts = np.zeros(100)
    sizes = []
    for seed in range(1500):
        spans = corrupts.spans(100, np.random.default_rng(seed))
        sizes += [end - start for start, end in spans]
        for start, end in spans:
            counts[start:end] += 1
        assert all(second[0] > first[1] for first, second in pairwise(spans))
    assert counts.sum() / 1500 == 15  # of 100 tokens, always
    assert np.mean(sizes) == 3.0
    assert set(range(1, 10)) <= set(sizes)
    assert (counts[5:-5] / 1500).round(2) == pytest.approx(0.15, abs=0.05)


def test_the_block_that_is_512_tokens_when_corrupted(t5):
    """T5's own code (random_spans_helper) gives 568 tokens, and 114 to be written; a last sentinel is one more."""
    corrupts = SpanCorruption(t5, 0.15, 3.0, Frame((), (t5.eos_token_id,)))
    assert corrupts.room(512) == 568
    assert corrupts._sizes(568) == (512, 115)
    assert max(corrupts._sizes(569)) > 512
    for length in (16, 33, 64, 200):
        assert max(corrupts._sizes(corrupts.room(length))) <= length < max(corrupts._sizes(corrupts.room(length) + 1))
    with pytest.raises(TrainingError, match=r"makes 32 spans, .* for 31; lower it, or raise training\.mean_span"):
        SpanCorruption(t5, 0.5, 1.0, Frame((), ())).room(66)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.7])
def test_infilling_keeps_the_text_and_puts_a_mask_for_each_span(bart, density):
    infills = TextInfilling(bart, density, 3.0)
    begin, end = bart.cls_token_id, bart.eos_token_id
    for length in LENGTHS:
        for seed in range(3):
            ids = random_ids(length, seed)
            row = [begin, *ids[: length // 2], end, *ids[length // 2 :], end]
            feature = infills.hide(row, None, np.random.default_rng(seed))
            assert feature["labels"] == row
            assert len(feature["input_ids"]) <= len(row)
            hidden = set(feature["hidden"])
            assert len(hidden) == len(feature["hidden"]) == max(1, round(density * length))
            assert not {row[place] for place in hidden} & set(bart.all_special_ids)
            kept = [token for place, token in enumerate(row) if place not in hidden]
            assert [token for token in feature["input_ids"] if token != bart.mask_token_id] == kept
            runs = [place for place in hidden if place - 1 not in hidden]
            assert feature["input_ids"].count(bart.mask_token_id) >= len(runs)
            # Each run of hidden tokens has its mask just where it was.
            at, read = 0, feature["input_ids"]
            for place, token in enumerate(row):
                if place in hidden:
                    if place in runs:
                        while read[at] != bart.mask_token_id:
                            at += 1
                        at += 1
                else:
                    while read[at] == bart.mask_token_id:
                        at += 1
                    assert read[at] == token
                    at += 1


def test_lengths_of_infilled_spans_are_poissons(bart):
    infills = TextInfilling(bart, 0.3, 3.0)
    found = [size for seed in range(300) for size in infills.lengths(1000, np.random.default_rng(seed))[:-1]]
    shares = np.bincount(found, minlength=12)[:12] / len(found)
    want = np.exp(-3) * np.array([3.0**k for k in range(12)]) / np.cumprod([1, *range(1, 12)])
    assert shares == pytest.approx(want, abs=0.01)  # a span of no token among them


def test_control_tokens_that_a_text_spells_are_left_out_for_t5(t5):
    examples = [Example({"text": text}, "x") for text in ("profit <extra_id_3> rose [SEP]", "[MASK]", "sales \u4e00")]
    stream = SpanCorruption(t5, 0.15, 3.0).tokenize(examples, t5)
    want = [t5(text, add_special_tokens=False)["input_ids"] for text in ("profit rose", "sales \u4e00")]
    assert list(stream.ids) == [*want[0], *want[1]]
    assert t5.unk_token_id in stream.ids
    assert stream.lengths == [2, 0, 2]
    plain = tokenize(examples[2:], t5, words=True)
    assert leave_out(plain, [5]) is plain
    fewer = leave_out(plain, [plain.ids[0]])
    assert (fewer.ids, fewer.begins, fewer.lengths) == (plain.ids[1:], plain.begins[1:], [1])
    assert isinstance(fewer, Stream)


def encode(recipe, base, count=12, max_length=32):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    task = make_task(recipe, None)
    length = task.meet(model, tokenizer, max_length, lambda line: None)
    examples = [Example({"text": row["text"]}, "x") for row in text_rows(count)]
    return model, tokenizer, task, task.encode(examples, tokenizer, length, lambda line: None)


@pytest.mark.parametrize("family", ["t5-spans", "bart"])
def test_blocks_are_corrupted_anew_in_training_and_the_same_where_it_is_measured(family, make_recipe, bases):
    recipe = make_recipe("fill-mask", family)
    assert recipe.strategy == "continual"
    _, tokenizer, _, encoded = encode(recipe, bases(family), 40)
    rows = encoded.features
    assert all(len(row["input_ids"]) <= 32 for row in rows)
    assert max(len(row["input_ids"]) for row in rows) >= (32 if family == "t5-spans" else 24)
    *_, again = encode(make_recipe("fill-mask", family, **{"training.seed": 7}), bases(family), 40)
    assert list(rows) == list(again.features)
    fresh = rows.anew(42)
    first = list(fresh)
    assert first == [fresh[place] for place in range(len(fresh))]
    assert fresh.pick([3, 1])[:] == (first[3], first[1])
    fresh.epoch = 1
    assert sum(row != other for row, other in zip(fresh, first, strict=True)) > len(first) * 0.8
    assert list(rows.anew(7)) != first
    marks = {*sentinel_ids(tokenizer), tokenizer.eos_token_id}
    counts = [len(row["hidden"]) if family == "bart" else sum(t not in marks for t in row["labels"]) for row in rows]
    share = sum(counts) / sum(
        sum(token not in tokenizer.all_special_ids for token in rows.rows.row(place)) for place in range(len(rows))
    )
    assert share == pytest.approx({"t5-spans": 0.15, "bart": 0.3}[family], abs=0.02)


@pytest.mark.parametrize("family", ["t5-spans", "bart", "mbart", "nllb"])
def test_the_figures_are_the_models_own_of_what_is_written_or_hidden(family, make_recipe, bases):
    languages = {"mbart": "en_XX", "nllb": "eng_Latn"}
    settings = {"data.source_lang": languages[family]} if family in languages else {}
    model, tokenizer, task, encoded = encode(make_recipe("fill-mask", family, **settings), bases(family))
    found = task.metrics(outcomes(model, task, encoded, tokenizer, batch_size=3), encoded.golds)
    losses, right, tokens = 0.0, 0, 0
    for feature in encoded.features:
        labels = torch.tensor([feature["labels"]])
        measured = labels
        if family != "t5-spans":
            measured = torch.full_like(labels, IGNORED)
            measured[0, feature["hidden"]] = labels[0, feature["hidden"]]
        start = torch.cat([labels.new_tensor([[model.config.decoder_start_token_id]]), labels[:, :-1]], dim=1)
        if family == "mbart":  # its decoder starts from the language, which ends the labels
            start[0, 0] = labels[0, -1]
        with torch.no_grad():  # transformers' own loss
            made = model(input_ids=torch.tensor([feature["input_ids"]]), decoder_input_ids=start, labels=measured)
        count = int((measured != IGNORED).sum())
        losses += float(made.loss) * count
        right += int((made.logits[0].argmax(-1) == measured[0]).sum())
        tokens += count
    assert found["loss"] == pytest.approx(losses / tokens, rel=1e-5)
    assert found["token_accuracy"] == pytest.approx(right / tokens)
    baseline = task.baselines([], encoded, encoded, tokenizer)["unigram"]["loss"]
    if family == "t5-spans":
        ids = asked = np.concatenate([row["labels"] for row in encoded.features])
        never = []
    else:
        ids, never = np.array(encoded.features.rows.ids), sorted(tokenizer.all_special_ids)
        asked = np.concatenate([np.array(row["labels"])[row["hidden"]] for row in encoded.features])
    counts = np.bincount(ids, minlength=len(tokenizer)) + 1.0
    counts[never] = 0
    assert baseline == pytest.approx(float(-np.log(counts[asked] / counts.sum()).mean()))
    framed = encoded.features.rows.row(0)
    if family == "mbart":
        assert framed[-2:] == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("en_XX")]
    if family == "nllb":
        assert framed[0] == tokenizer.convert_tokens_to_ids("eng_Latn")


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("t5-spans", {}),
        ("t5-spans", {"method": "qlora", "strategy": "fine-tune", "training.early_stopping": 2}),
        ("bart", {"training.mlm_probability": 0.2, "training.mean_span": 2.0}),
        ("mbart", {"data.source_lang": "en_XX"}),
        ("t5-spans", {"method": "ia3"}),
    ],
    ids=str,
)
def test_a_run_learns_and_is_served(family, settings, make_recipe, registry, bases):
    recipe = make_recipe(
        "fill-mask",
        family,
        rows=80,
        **{"training.epochs": 2, "training.learning_rate": 0.02, "training.max_length": 32, **settings},
    )
    version = train(recipe, registry)
    losses = {split: values["loss"] for split, values in version.metrics.items()}
    assert losses["test"] < 0.99 * losses["untrained"], losses
    assert set(version.metrics["test"]) == {"loss", "perplexity", "token_accuracy"}
    assert set(version.metrics) == {"test", "untrained", "unigram"}
    mean = settings.get("training.mean_span", 3)
    assert version.manifest.filling == Filling("sentinels" if family == "t5-spans" else "mask", int(5 * mean) + 1)
    assert registry.verify() == []
    backbone = Backbone.from_pretrained(recipe.base, quantization=recipe.quantization, registry=registry)
    backbone.load("tiny")
    assert backbone.verify("tiny").matches
    mask = "<extra_id_0>" if family == "t5-spans" else backbone.tokenizer.mask_token
    answer = backbone.predict(f"profit {mask} the", "tiny", top_k=2)
    assert [set(one) for one in answer] == [{"score", "token", "token_str", "sequence"}] * 2
    assert all(one["sequence"].startswith("profit") and one["sequence"].endswith("the") for one in answer)


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("t5-spans", "summarization"),
        ("t5-spans", "text-classification"),
        ("bart", "translation"),
        ("bart", "text-classification"),
    ],
)
def test_a_task_starts_from_the_domain_adapter(family, task, make_recipe, registry, tmp_path):
    domain = train(make_recipe("fill-mask", family, rows=24, **{"training.max_steps": 3}), registry)
    settings = {"generation.rows": 2, "training.max_target_length": 8} if task != "text-classification" else {}
    recipe = make_recipe(
        task, family, rows=24,
        **{"name": "task", "strategy": "intermediate", "from": "tiny@1", "training.max_steps": 1,
           "training.learning_rate": 1e-9, "output": str(tmp_path / "task"), **settings},
    )  # fmt: skip
    version = train(recipe, registry)
    assert version.parents == (domain.reference,)
    # After next to no steps the low-rank weights are the parent's, module by module.
    backbone = Backbone.from_pretrained(recipe.base, slots=2, registry=registry)
    states = []
    for name in ("tiny", "task"):
        backbone.load(name)
        state = backbone.state(name)
        states.append({place(key): tensor for key, tensor in state.items() if "lora_" in key})
    theirs, ours = states
    assert theirs.keys() == ours.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-6, rtol=1e-6)


def place(key):
    for part in ("encoder.", "decoder."):
        if part in key:
            return key[key.index(part) :]
    return key


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("t5-spans", {"training.whole_word_mask": True}, "training.whole_word_mask: an encoder-decoder hides spans"),
        ("t5-spans", {"data.source_lang": "en"}, "data.source_lang: the tokenizer of 't5' marks no languages"),
        ("mbart", {}, "name it with data.source_lang, in a code such as 'en_XX'"),
        ("mbart", {"data.source_lang": "english"}, "data.source_lang: .* knows no language 'english'"),
        ("bert-mlm", {"training.mean_span": 2.0}, "training.mean_span: only encoder-decoders have it"),
        ("bert-mlm", {"data.source_lang": "en"}, "data.source_lang: only encoder-decoders have it"),
    ],
)
def test_settings_and_bases_that_do_not_fit(family, settings, message, make_recipe, registry):
    with pytest.raises(TrainingError, match=message):
        train(make_recipe("fill-mask", family, **settings), registry)
    assert registry.versions() == []


def test_the_domain_stage_of_an_ablation_is_the_bases_own_pretraining(make_recipe, tmp_path):
    (tmp_path / "corpus.txt").write_text("profit rose\n\nsales fell\n\n" * 20)
    for family, task in (("t5-spans", "summarization"), ("mbart", "translation"), ("bart", "summarization")):
        languages = {"data.source_lang": "en_XX", "data.target_lang": "de_DE"} if family == "mbart" else {}
        domain: Recipe = _domain_recipe(make_recipe(task, family, **languages), str(tmp_path / "corpus.txt"))
        assert (domain.task, domain.strategy) == ("fill-mask", "continual")
        assert domain.data.source_lang == languages.get("data.source_lang")
