"""Question answering: the windows, and their reading held against a plain one made here, span by span."""

import shutil

import pytest
import torch

from lorary.adapters import Backbone
from lorary.hub.errors import UsageError
from lorary.hub.manifest import Answering, BaseIdentity, Manifest, Preprocessing
from tiny import WORDS, make_adapter, peft_reference

QUESTION = "profit of the bank"
CONTEXT = "shares rose and profit fell the bank offer cash"
LONG = " ".join(WORDS * 5)  # 190 words in windows of 64 tokens
ROW = {"question": QUESTION, "context": CONTEXT}


@pytest.fixture(scope="module")
def folder(bases, tmp_path_factory):
    return make_adapter(bases("bert"), tmp_path_factory.mktemp("qa") / "qa", task="question-answering")


@pytest.fixture(scope="module")
def backbone(bases, folder):
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(folder)
    return backbone


def plain_reading(backbone, model, context, longest=15, limit=64, stride=None):
    """Every span's best score over all windows, by brute force, and the least score of no answer."""
    encoded = backbone.tokenizer(
        QUESTION, context, truncation="only_second", max_length=limit, stride=stride or 0,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    spans, empty = {}, 1.0
    for index, ids in enumerate(encoded["input_ids"]):
        inputs = {"input_ids": torch.tensor([ids])}
        with torch.no_grad():
            output = model(**inputs)
        places = [place for place, side in enumerate(encoded.sequence_ids(index)) if side == 1]
        mask = torch.full((len(ids),), float("-inf"))
        mask[[0, *places]] = 0.0
        starts, ends = ((own[0] + mask).softmax(dim=0).tolist() for own in (output.start_logits, output.end_logits))
        empty = min(empty, starts[0] * ends[0])
        offsets = encoded["offset_mapping"][index]
        for first in places:
            for last in range(first, min(first + longest, places[-1] + 1)):
                span, score = (offsets[first][0], offsets[last][1]), starts[first] * ends[last]
                spans[span] = max(score, spans.get(span, 0.0))
    return spans, empty


@pytest.mark.parametrize(("context", "stride"), [(CONTEXT, 20), (LONG, 0), (LONG, 30)])
def test_answers_are_the_best_spans_of_all_windows(bases, backbone, folder, context, stride):
    model = peft_reference(bases("bert"), folder, task="question-answering")
    spans, empty = plain_reading(backbone, model, context, stride=stride)
    best = sorted(spans.items(), key=lambda item: -item[1])[:4]
    row = {"question": QUESTION, "context": context}
    answers = backbone.predict(row, "qa", top_k=4, doc_stride=stride, max_seq_len=64)
    assert [answer["score"] for answer in answers] == pytest.approx([score for _, score in best], abs=1e-5)
    assert [(answer["start"], answer["end"]) for answer in answers] == [span for span, _ in best]
    assert all(context[answer["start"] : answer["end"]] == answer["answer"] for answer in answers)
    alone = backbone.predict(row, "qa", doc_stride=stride, max_seq_len=64)
    assert alone == pytest.approx(answers[0], abs=1e-5)
    with_none = backbone.predict(row, "qa", top_k=10_000, doc_stride=stride, handle_impossible_answer=True)
    (nothing,) = [answer for answer in with_none if not answer["answer"]]
    assert (nothing["start"], nothing["end"]) == (0, 0)
    assert nothing["score"] == pytest.approx(empty, abs=1e-5)


def test_the_longest_answer(bases, backbone, folder):
    model = peft_reference(bases("bert"), folder, task="question-answering")
    spans, _ = plain_reading(backbone, model, CONTEXT, longest=2)
    answers = backbone.predict(ROW, "qa", top_k=1000, max_answer_len=2)
    assert {(answer["start"], answer["end"]) for answer in answers} == spans.keys()
    assert max(len(answer["answer"].split()) for answer in answers) == 2


def test_an_answer_may_be_none(backbone):
    """Logits that put everything on the classifier token: no answer wins where it may, and only there."""
    from lorary.adapters.predict.base import Setting
    from lorary.adapters.predict.question_answering import QuestionAnsweringRows

    setting = Setting(None, backbone.tokenizer, Preprocessing(), None, 64)
    for handle, want in ((True, ""), (False, "fell")):
        rows = QuestionAnsweringRows(setting, {"handle_impossible_answer": handle})
        pieces = rows.encode(ROW)
        logits = torch.zeros(pieces[0]["input_ids"].shape[1], 2)
        logits[0] = 9.0
        logits[6 + CONTEXT.split().index("fell")] = 5.0  # four words of the question and two special tokens
        answer = rows.decode(pieces, [logits])
        assert answer["answer"] == want


def test_an_answer_in_one_window_is_enough(backbone):
    from lorary.adapters.predict.base import Setting
    from lorary.adapters.predict.question_answering import QuestionAnsweringRows

    rows = QuestionAnsweringRows(
        Setting(None, backbone.tokenizer, Preprocessing(stride=0), None, 64), {"handle_impossible_answer": True}
    )
    pieces = rows.encode({"question": QUESTION, "context": LONG})
    assert len(pieces) > 2
    logits = [torch.zeros(piece["input_ids"].shape[1], 2) for piece in pieces]
    for own in logits:
        own[0] = 12.0
    logits[1][10] = 16.0
    answer = rows.decode(pieces, logits)
    assert answer["answer"]
    start, end = pieces[1]["window"].spans[10]
    assert (answer["start"], answer["end"]) == (start, end)


def test_columns_length_and_stride_are_the_manifests(bases, backbone, folder, tmp_path):
    import shutil

    own = shutil.copytree(folder, tmp_path / "own")
    columns = {"question": "frage", "context": "text"}
    Manifest(
        "question-answering", BaseIdentity("x"), preprocessing=Preprocessing(columns, max_length=40, stride=12)
    ).write(own)
    backbone.load(own)
    got = backbone.predict({"frage": QUESTION, "text": LONG}, "own", top_k=3)
    want = backbone.predict({"question": QUESTION, "context": LONG}, "qa", top_k=3, max_seq_len=40, doc_stride=12)
    assert got == want
    assert got != backbone.predict({"question": QUESTION, "context": LONG}, "qa", top_k=3)


def test_what_a_call_leaves_open_is_the_adapters(bases, folder, tmp_path):
    """transformers' pipelines take None for what isn't said."""
    own = shutil.copytree(folder, tmp_path / "own")
    settings = {"answering": Answering(2, impossible=True), "preprocessing": Preprocessing(max_length=20, stride=3)}
    Manifest("question-answering", BaseIdentity("x"), **settings).write(own)
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(own)
    row = {"question": QUESTION, "context": LONG}
    names = ("handle_impossible_answer", "max_answer_len", "align_to_words", "max_seq_len", "doc_stride")
    said = backbone.predict(row, "own", top_k=1000)
    assert "" in {answer["answer"] for answer in said}
    assert backbone.predict(row, "own", top_k=1000, **dict.fromkeys(names)) == said
    assert backbone.predict(row, "own", top_k=None) == said[0]


def test_whole_words():
    """Answers end where words do, though tokens may be parts of them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from lorary.adapters.predict.base import Setting
    from lorary.adapters.predict.question_answering import QuestionAnsweringRows

    pieces = ["[UNK]", "[CLS]", "[SEP]", "who", "bank", "##rupt", "##cy", "the"]
    backend = Tokenizer(WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    context = "the bankruptcy bank"
    found = {}
    for align in (True, False):
        rows = QuestionAnsweringRows(Setting(None, tokenizer, Preprocessing(), None, 32), {"align_to_words": align})
        (piece,) = rows.encode({"question": "who", "context": context})
        logits = torch.zeros(piece["input_ids"].shape[1], 2)
        logits[5] = 9.0  # "##rupt", the second piece of its word
        found[align] = rows.decode([piece], [logits])["answer"]
    assert found == {True: "bankruptcy", False: "rupt"}


@pytest.mark.parametrize(
    ("row", "params", "message"),
    [
        ("profit", {}, "expected a mapping with 'question' and 'context', found str"),
        ({"question": "profit"}, {}, "a row has no context: expected a column 'context', found question"),
        ({"question": " ", "context": CONTEXT}, {}, "a row's question is empty"),
        ({"question": "profit", "context": ""}, {}, "a row's context is empty"),
        ({"question": LONG, "context": CONTEXT}, {}, "takes 195 of a window's 64 tokens"),
        (ROW, {"doc_stride": 60}, r"doc_stride=60: a window has room for 57 tokens"),
        (ROW, {"doc_stride": -1}, "doc_stride=-1: expected a whole number of at least 0"),
        ({"question": ["profit"], "context": CONTEXT}, {}, "a row's question isn't a text: expected str, found list"),
        (ROW, {"max_seq_len": 100}, "takes at most 64 tokens"),
        (ROW, {"top_k": 0}, "top_k=0: expected a whole number"),
        (ROW, {"max_answer_length": 3}, "doesn't take max_answer_length here; known: align_to_words"),
    ],
)
def test_what_cant_be_asked(backbone, row, params, message):
    with pytest.raises(UsageError, match=message):
        backbone.predict(row, "qa", **params)
