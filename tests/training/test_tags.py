"""Token classification: tag schemes, CoNLL files, and where a word's tag stands among its pieces."""

from __future__ import annotations

import pytest
from seqeval.metrics import classification_report, f1_score
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lorary.adapters import Backbone
from lorary.hub.errors import DataError, RecipeError
from lorary.hub.metrics import headline, lower_is_better
from lorary.training import train
from lorary.training.data import Example, load_data
from lorary.training.data.files.source import read_source
from lorary.training.data.labels.tags import as_iobes, find_scheme, is_broken, mark_entities
from lorary.training.fitting.losses import IGNORED
from lorary.training.tasks import make_task
from lorary.training.tasks.token_classification import Gold
from samples import WORDS, tag_rows, write_jsonl

TAG = "token-classification"
IN_SCHEMES = {
    "IOB1": ["O I-PER I-PER O I-LOC", "I-PER B-PER I-PER I-LOC"],
    "IOB2": ["O B-PER I-PER O B-LOC", "B-PER B-PER I-PER B-LOC"],
    "IOBES": ["O B-PER E-PER O S-LOC", "S-PER B-PER E-PER S-LOC"],
    "BILOU": ["O B-PER L-PER O U-LOC", "U-PER B-PER L-PER U-LOC"],
}


@pytest.mark.parametrize("scheme", IN_SCHEMES)
def test_schemes_are_recognised_and_scored_as_seqeval_does(scheme, make_recipe):
    golds = [tags.split() for tags in IN_SCHEMES[scheme]]
    assert find_scheme(golds) == scheme
    assert not any(is_broken(tags, scheme) for tags in golds)
    labels = tuple(sorted({tag for tags in golds for tag in tags}))
    task = make_task(make_recipe(TAG), labels)
    found = [golds[0], ["O"] * 4]
    wrapped = [Gold(tuple(tags), tuple(range(len(tags)))) for tags in golds]
    strict = {"IOB1": IOB1, "IOB2": IOB2, "IOBES": IOBES, "BILOU": BILOU}[scheme]
    expected = f1_score(golds, found, mode="strict", scheme=strict, zero_division=0)
    scores = task.metrics(found, wrapped)
    assert scores["f1"] == pytest.approx(expected) == pytest.approx(4 / 7)
    report = classification_report(golds, found, mode="strict", scheme=strict, output_dict=True, zero_division=0)
    assert scores["f1_PER"] == pytest.approx(report["PER"]["f1-score"])
    assert scores["f1_LOC"] == pytest.approx(report["LOC"]["f1-score"])
    assert scores["f1_macro"] == pytest.approx(report["macro avg"]["f1-score"])
    assert task.metrics(golds, wrapped)["f1"] == 1.0
    spans = task.mistakes(golds, wrapped)
    entities = Entities(golds, strict).entities
    assert sum(row[0] for row in spans.counts) == sum(len(sentence) for sentence in entities)


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("IOB2", "O I-PER"), ("IOB2", "B-LOC I-PER"), ("IOBES", "B-PER O"), ("IOBES", "E-PER"), ("IOBES", "O I-PER"),
        ("IOBES", "B-PER E-LOC"), ("IOBES", "B-PER"), ("BILOU", "B-PER U-PER"), ("BILOU", "L-PER O"),
    ],
)  # fmt: skip
def test_broken_sentences_are_seen(scheme, tags):
    assert is_broken(tags.split(), scheme)


def test_sentences_without_an_entity_show_no_odd_scheme():
    assert find_scheme([["O", "O"], ["O"]]) == "IOB2"


def test_tags_that_are_no_entities(make_recipe, tmp_path):
    assert not mark_entities(("DET", "NOUN"))
    assert not mark_entities(("O",))
    assert mark_entities(("O", "S-PER"))
    assert as_iobes(["L-PER", "U-U-boat", "O", "B-L"]) == ["E-PER", "S-U-boat", "O", "B-L"]
    rows = [{"tokens": ["red", "bank"], "tags": ["ADJ", "NOUN"]}] * 8
    notes: list[str] = []
    data = load_data(
        make_recipe(TAG, **{"data.train": write_jsonl(tmp_path / "w.jsonl", rows), "data.test": None}), notes.append
    )
    assert "tag_scheme" not in data.provenance
    assert any(note.endswith("scored word by word") for note in notes)


def test_words_that_were_cut_off_are_wrong_where_tags_are_no_entities(make_recipe):
    task = make_task(make_recipe(TAG), ("ADJ", "NOUN"))
    golds = [Gold(("NOUN", "ADJ", "ADJ", "NOUN"), (0,))]
    assert task.metrics([["NOUN"]], golds)["accuracy"] == 0.25


def test_broken_sentences_are_counted_or_refused(make_recipe, tmp_path):
    rows = [*tag_rows(8), {"tokens": ["the", "bank"], "tags": ["O", "I-ORG"]}]
    settings = {"data.train": write_jsonl(tmp_path / "b.jsonl", rows)}
    notes: list[str] = []
    data = load_data(make_recipe(TAG, **settings), notes.append)
    assert data.provenance["tag_scheme"] == "IOB2"
    assert notes[0].startswith("1 of 9 sentences have an I- tag without its B- before it (first: ")
    with pytest.raises(DataError, match=r"b.jsonl, row 9: an I- tag without its B- before it"):
        load_data(make_recipe(TAG, **settings, **{"data.broken_tags": "error"}))
    with pytest.raises(RecipeError, match=r"data.broken_tags: only token-classification has tags"):
        make_recipe("text-classification", **{"data.broken_tags": "error"})


def test_tags_may_be_numbers_of_listed_labels(make_recipe, tmp_path):
    rows = [{"tokens": ["the", "bank", "said"], "tags": [0, 1, 0]}] * 5
    path = write_jsonl(tmp_path / "n.jsonl", rows)
    settings = {"data.train": path, "data.test": None, "data.labels": ("O", "B-ORG", "I-ORG")}
    assert load_data(make_recipe(TAG, **settings)).train[0].values["tags"] == ["O", "B-ORG", "O"]


def test_a_conll_file_is_read_by_sentences(make_recipe, tmp_path):
    path = tmp_path / "a.conll"
    path.write_text(
        "-DOCSTART- -X- O O\n\nEU NNP B-NP I-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP I-PER\r\nNew York\tB-LOC\nof O",
        "utf-8",
    )
    settings = {"data.train": str(path), "data.test": str(path.with_name("b.conll"))}
    path.with_name("b.conll").write_text("EU O\n")
    data = load_data(make_recipe(TAG, **settings, **{"data.validation_size": 0}))
    assert [dict(example.values) for example in data.train] == [
        {"tokens": ["EU", "rejects"], "tags": ["I-ORG", "O"]},
        {"tokens": ["Peter", "New York", "of"], "tags": ["I-PER", "B-LOC", "O"]},
    ]
    assert [example.place.rpartition(", ")[2] for example in data.train] == ["row 3", "row 7"]
    path.write_text("EU B-ORG\nalone\n")
    with pytest.raises(DataError, match=r"row 2: expected a word and its tag, found 'alone'"):
        load_data(make_recipe(TAG, **settings))


def test_comments_of_a_conll_file_are_no_words(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("# id 7\n# text = Peter sang\nPeter B-PER\nsang O\n\n# O\n1 O\n# O\n", "utf-8")
    assert [row.values["tokens"] for row in read_source(str(path)).rows] == [["Peter", "sang"], ["#", "1", "#"]]
    # MultiCoNER's hold a tab, and may stand alone
    path.write_text("# id 7\tdomain=en\n\nPeter _ _ B-PER\n\n# id 8\tdomain=en\nsang\tO\n", "utf-8")
    assert [row.values["tokens"] for row in read_source(str(path)).rows] == [["Peter"], ["sang"]]


def test_a_types_name_says_nothing_about_which_way_is_better():
    assert not lower_is_better("f1_error")
    assert lower_is_better("rmse")
    assert lower_is_better("eval_loss")
    assert not lower_is_better("loss_gain")
    assert headline({"f1_PER": 0.1, "f1": 0.5}) == ("f1", 0.5)


# Alignment


def _bert() -> Tokenizer:
    letters = [chr(code) for code in range(33, 127)] + list("éü€")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [word for word in WORDS if word not in letters]
    backend = Tokenizer(
        models.WordPiece({piece: n for n, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


def _roberta() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>"]
    backend.train_from_iterator(
        [" ".join(WORDS)] * 4,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    return backend


def _llama(scheme: str = "first") -> Tokenizer:
    """SentencePiece's way: a space is the sign before a word, other characters fall back to their bytes."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(
        [" ".join(WORDS)] * 4, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


TOKENIZERS = {"bert": _bert, "roberta": _roberta, "llama": _llama, "llama-never": lambda: _llama("never")}
SENTENCES = [
    ["the", "bank", "said"],
    ["Zürich", "-", "based", "U.S.", "firm's", "profit"],
    ["\u200b", "bank", "\u200b", "\ufeff", "rose"],  # words that a tokenizer may drop
    ["😀", "日本", "é", "e\u0301", "€5"],
    ["New York", "fell", "a  b"],  # words with spaces in them
    ["x"],
]


INVISIBLE = {"\u200b", "\ufeff"}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("words", SENTENCES, ids=" ".join)
def test_each_words_tag_stands_on_the_first_piece_in_it_and_nowhere_else(kind, words, make_recipe):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[kind]())
    labels = tuple(f"T{place}" for place in range(len(words) + 1))
    task = make_task(make_recipe(TAG), labels)
    encoded = task.encode([Example({"tokens": words, "tags": list(labels[: len(words)])}, "")], tokenizer, 64, print)
    (feature,), (gold,) = encoded.features, encoded.golds
    text = " ".join(words)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert feature["input_ids"] == tokenizer(text)["input_ids"]
    begins, place = [], 0
    for word in words:
        begins.append((place, place + len(word)))
        place += len(word) + 1
    # The characters that a piece covers, spaces aside; pieces of special tokens and lone spaces cover none.
    covers = [{sign for sign in range(*span) if not text[sign].isspace()} for span in offsets]
    expected = {}
    for number, (start, end) in enumerate(begins):
        pieces = [index for index, cover in enumerate(covers) if cover & set(range(start, end))]
        if pieces:
            expected[pieces[0]] = labels[number]
    assert {n: labels[label] for n, label in enumerate(feature["labels"]) if label != IGNORED} == expected
    assert [labels[word] for word in gold.words] == list(expected.values())
    assert len(gold.words) >= len(words) - sum(word in INVISIBLE for word in words)


def test_words_that_a_bert_drops_have_no_tag_and_the_others_keep_theirs(make_recipe):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_bert())
    task = make_task(make_recipe(TAG), ("O", "B-ORG"))
    row = {"tokens": ["the", "\u200b", "bank"], "tags": ["O", "B-ORG", "B-ORG"]}
    (gold,) = task.encode([Example(row, "")], tokenizer, 64, print).golds
    assert gold.words == (0, 2)


@pytest.mark.parametrize("scheme", ["IOBES", "BILOU"])
def test_entities_in_other_schemes_are_grouped_by_predict(scheme, make_recipe, registry, tmp_path):
    """What training measures as one entity is one entity to a user."""
    last = "E-ORG" if scheme == "IOBES" else "L-ORG"

    def convert(row):
        return {**row, "tags": [last if tag == "I-ORG" else tag for tag in row["tags"]]}

    single = {"tokens": ["the", "record", "rose"], "tags": ["O", "S-ORG" if scheme == "IOBES" else "U-ORG", "O"]}
    rows = [*map(convert, tag_rows(96)), *[single] * 24]
    path = write_jsonl(tmp_path / "s.jsonl", rows)
    version = train(
        make_recipe(TAG, layers=2, **{"data.train": path, "data.test": None, "training.epochs": 8}), registry
    )
    assert version.metrics["test"]["f1_ORG"] == version.metrics["test"]["f1"] > 0.9
    backbone = Backbone.from_pretrained(version.base_id, device="cpu", registry=registry)
    backbone.load("tiny")
    for text, entity in (("profit bank report sales", "bank report"), ("the record rose", "record")):
        (found,) = backbone.predict(text, "tiny", aggregation_strategy="first")
        assert (found["entity_group"], text[found["start"] : found["end"]]) == ("ORG", entity)
