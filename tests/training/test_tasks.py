"""Rows to token ids and logits to metrics, for each task, against the libraries that define them."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lorary.hub.errors import DataError, TrainingError
from lorary.training.data import Example
from lorary.training.fitting.losses import IGNORED
from lorary.training.tasks import make_task
from lorary.training.tasks.text_generation import DEFAULT_TEMPLATE
from lorary.training.tasks.token_classification import Gold
from samples import bpe_tokenizer, wordpiece_tokenizer

CLASSIFY, TAG, GENERATE = "text-classification", "token-classification", "text-generation"


@pytest.fixture(scope="module")
def wordpiece():
    return wordpiece_tokenizer()


@pytest.fixture(scope="module")
def bpe():
    tokenizer = bpe_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode(task, tokenizer, *rows, max_length=64):
    notes: list[str] = []
    examples = [Example(row, f"rows, row {number}") for number, row in enumerate(rows, start=1)]
    return task.encode(examples, tokenizer, max_length, notes.append), notes


# Text classification


def test_pairs_are_encoded_as_the_tokenizer_does(make_recipe, wordpiece):
    task = make_task(make_recipe(), ("bad", "good"))
    encoded, _ = encode(task, wordpiece, {"text": "profit rose", "text_pair": "the bank", "label": "good"})
    (feature,) = encoded.features
    assert feature.pop("labels") == 1
    assert feature == dict(wordpiece("profit rose", "the bank"))
    assert feature["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


# Token classification


def tags_by_token(encoded, tokenizer, labels):
    (feature,) = encoded.features
    pieces = tokenizer.convert_ids_to_tokens(feature["input_ids"])
    names = [None if label == IGNORED else labels[label] for label in feature["labels"]]
    return list(zip(pieces, names, strict=True))


LABELS = ("B-ORG", "I-ORG", "O")


def test_a_tag_stands_on_the_first_piece_of_its_word(make_recipe, wordpiece):
    task = make_task(make_recipe(TAG), LABELS)
    row = {"tokens": ["the", "abc", "un-x", "bank"], "tags": ["O", "B-ORG", "I-ORG", "O"]}
    encoded, _ = encode(task, wordpiece, row)
    assert tags_by_token(encoded, wordpiece, LABELS) == [
        ("[CLS]", None), ("the", "O"), ("a", "B-ORG"), ("##b", None), ("##c", None),
        ("u", "I-ORG"), ("##n", None), ("-", None), ("x", None), ("bank", "O"), ("[SEP]", None),
    ]  # fmt: skip
    (gold,) = encoded.golds
    assert gold == Gold(("O", "B-ORG", "I-ORG", "O"), (0, 1, 2, 3))


def test_tokenizers_that_count_the_space_before_a_word_align_too(make_recipe, bpe):
    task = make_task(make_recipe(TAG), LABELS)
    row = {"tokens": ["profit", "zzz", "rose"], "tags": ["O", "B-ORG", "O"]}
    encoded, _ = encode(task, bpe, row)
    tagged = [(piece, tag) for piece, tag in tags_by_token(encoded, bpe, LABELS) if tag]
    assert [tag for _, tag in tagged] == ["O", "B-ORG", "O"]
    (feature,) = encoded.features
    assert feature["input_ids"] == bpe("profit zzz rose")["input_ids"]  # what a user's text will be
    assert sum(label == IGNORED for label in feature["labels"]) >= 3  # <s> and the further pieces of zzz


def test_words_without_a_piece_and_words_cut_off_count_as_outside(make_recipe, wordpiece):
    task = make_task(make_recipe(TAG), LABELS)
    row = {"tokens": ["bank", "\u200b", "firm", "bank"], "tags": ["B-ORG", "I-ORG", "O", "B-ORG"]}
    encoded, _ = encode(task, wordpiece, row, max_length=5)
    (gold,) = encoded.golds
    assert gold.words[0] == 0
    assert 3 not in gold.words
    assert encoded.lengths[0].full > encoded.lengths[0].kept == 5
    outcome = [gold.tags[word] for word in gold.words]
    scores = task.metrics([outcome], encoded.golds)
    assert scores["recall"] < 1.0
    assert scores["precision"] == pytest.approx(0.5 if 1 not in gold.words else 1.0)


def test_tagging_metrics_are_seqevals(make_recipe):
    from seqeval.metrics import f1_score, precision_score, recall_score

    task = make_task(make_recipe(TAG), LABELS)
    golds = [["B-ORG", "I-ORG", "O", "B-ORG"], ["O", "B-ORG", "O"]]
    found = [["B-ORG", "O", "O", "B-ORG"], ["O", "B-ORG", "I-ORG"]]
    scores = task.metrics(found, [Gold(tuple(tags), tuple(range(len(tags)))) for tags in golds])
    assert scores["f1"] == f1_score(golds, found) == pytest.approx(1 / 3)
    assert scores["precision"] == precision_score(golds, found)
    assert scores["recall"] == recall_score(golds, found)
    assert scores["accuracy"] == pytest.approx(5 / 7)


def test_always_outside_finds_no_entity(make_recipe):
    task = make_task(make_recipe(TAG), LABELS)
    train = [Example({"tags": ["O", "O", "B-ORG"]}, "")]
    scores = task.majority(train, [Gold(("O", "B-ORG"), (0, 1))])
    assert (scores["f1"], scores["accuracy"]) == (0.0, 0.5)


def test_tags_that_mark_no_entities_are_scored_word_by_word(make_recipe, wordpiece):
    task = make_task(make_recipe(TAG), ("DET", "NOUN"))
    encoded, _ = encode(task, wordpiece, {"tokens": ["the", "bank"], "tags": ["DET", "NOUN"]})
    assert task.metrics([["DET", "NOUN"]], encoded.golds)["f1"] == 1.0


# Text generation


def learned(encoded, tokenizer):
    """(all of the row's text, the learned part of it), special tokens included."""
    (feature,) = encoded.features
    kept = [token for token in feature["labels"] if token != IGNORED]
    assert all(label in (IGNORED, token) for token, label in zip(feature["input_ids"], feature["labels"], strict=True))
    return tokenizer.decode(feature["input_ids"]), tokenizer.decode(kept)


def test_a_completion_is_learned_with_its_end_and_the_prompt_is_not(make_recipe, bpe):
    task = make_task(make_recipe(GENERATE), None)
    encoded, _ = encode(task, bpe, {"prompt": "say profit", "completion": "profit rose"})
    prompt = DEFAULT_TEMPLATE.replace("{prompt}", "say profit")
    assert learned(encoded, bpe) == (f"<s>{prompt}profit rose</s>", "profit rose</s>")
    (feature,) = encoded.features
    asked = bpe(prompt)["input_ids"]
    assert feature["input_ids"][: len(asked)] == asked  # exactly what generate will be given


def test_plain_text_is_learned_whole(make_recipe, bpe):
    recipe = make_recipe(GENERATE, **{"data.columns": {"text": "text"}})
    encoded, _ = encode(make_task(recipe, None), bpe, {"text": "profit rose"})
    assert learned(encoded, bpe) == ("<s>profit rose</s>", "profit rose</s>")  # nothing predicts the first token


def test_a_text_that_begins_with_the_beginning_token_has_it_once(make_recipe, bpe):
    recipe = make_recipe(GENERATE, **{"data.columns": {"text": "text"}})
    encoded, _ = encode(make_task(recipe, None), bpe, {"text": "<s>profit rose"})
    assert learned(encoded, bpe)[0] == "<s>profit rose</s>"


CHAT = [
    {"role": "user", "content": "profit?"},
    {"role": "assistant", "content": "it rose"},
    {"role": "user", "content": "sales?"},
    {"role": "assistant", "content": "they fell"},
]


def test_the_assistants_turns_are_learned_with_their_end(make_recipe, bpe):
    recipe = make_recipe(GENERATE, **{"data.columns": {"messages": "messages"}})
    encoded, _ = encode(make_task(recipe, None), bpe, {"messages": CHAT})
    whole, kept = learned(encoded, bpe)
    assert whole == "<s><user>profit?<assistant>it rose</s><user>sales?<assistant>they fell</s>"
    assert kept == "it rose</s>they fell</s>"


def test_a_prompt_can_be_put_as_a_chat(make_recipe, bpe):
    recipe = make_recipe(GENERATE, **{"prompt.format": "chat"})
    encoded, _ = encode(make_task(recipe, None), bpe, {"prompt": "profit?", "completion": "it rose"})
    assert learned(encoded, bpe) == ("<s><user>profit?<assistant>it rose</s>", "it rose</s>")


def test_a_recipes_chat_template_wins(make_recipe, bpe):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    recipe = make_recipe(GENERATE, **{"prompt.format": "chat", "prompt.chat_template": template})
    task = make_task(recipe, None)
    encoded, _ = encode(task, bpe, {"prompt": "profit?", "completion": "it rose"})
    assert learned(encoded, bpe) == ("[user]profit?[assistant]it rose", "it rose")
    assert task.prompt(bpe).chat_template == template


def test_a_template_that_fails_is_a_data_error_with_the_row(make_recipe, bpe):
    recipe = make_recipe(GENERATE, **{"prompt.format": "chat", "prompt.chat_template": "{{ raise_exception('no') }}"})
    with pytest.raises(DataError, match="row 1: the chat template refuses it"):
        encode(make_task(recipe, None), bpe, {"prompt": "a", "completion": "b"})


def test_tokenizers_that_lack_what_a_format_needs_are_refused(make_recipe, bpe):
    bare = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer, bos_token="<s>")
    with pytest.raises(TrainingError, match="no end-of-text token"):
        encode(make_task(make_recipe(GENERATE), None), bare, {"prompt": "a", "completion": "b"})
    plain = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer, eos_token="</s>")
    chat = make_recipe(GENERATE, **{"prompt.format": "chat"})
    with pytest.raises(TrainingError, match=r"no chat template; give one with prompt\.chat_template"):
        encode(make_task(chat, None), plain, {"prompt": "a", "completion": "b"})


def test_padding_that_is_also_the_end_stays_learned_where_it_is_real(make_recipe, bpe):
    assert bpe.pad_token_id == bpe.eos_token_id
    task = make_task(make_recipe(GENERATE), None)
    rows = [{"prompt": "a", "completion": "rose"}, {"prompt": "a", "completion": "rose fell grew loss debt"}]
    encoded, _ = encode(task, bpe, *rows)
    batch = task.collator(bpe)([dict(feature) for feature in encoded.features])
    short = len(encoded.features[0]["input_ids"])
    assert batch["labels"][0, short - 1] == bpe.eos_token_id
    assert set(batch["labels"][0, short:].tolist()) == {IGNORED}
    assert batch["attention_mask"].sum(1).tolist() == [len(feature["input_ids"]) for feature in encoded.features]


def test_generation_metrics_equal_the_models_own_loss(make_recipe, bases):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lorary.training.fitting.evaluate import outcomes

    model = AutoModelForCausalLM.from_pretrained(bases("llama")).eval()
    tokenizer = AutoTokenizer.from_pretrained(bases("llama"))
    tokenizer.pad_token = tokenizer.eos_token
    task = make_task(make_recipe(GENERATE), None)
    rows = [{"prompt": "a", "completion": "rose " * count} for count in (1, 4, 9)]
    encoded, _ = encode(task, tokenizer, *rows)
    scores = task.metrics(outcomes(model, task, encoded, tokenizer, batch_size=2), encoded.golds)
    batch = task.collator(tokenizer)([dict(feature) for feature in encoded.features])
    with torch.no_grad():
        output = model(**batch)
    assert scores["loss"] == pytest.approx(float(output.loss), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(float(output.loss)), rel=1e-4)
    shifted, best = batch["labels"][:, 1:], output.logits[:, :-1].argmax(-1)
    kept = shifted != IGNORED
    assert scores["token_accuracy"] == pytest.approx(float((best == shifted)[kept].float().mean()))
