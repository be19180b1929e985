"""Fill-mask on encoder-decoders: beams that fill gaps, against the probabilities of the same model in PEFT's hands."""

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.text.gaps import find_gaps, sentinel_ids
from lorary.hub.errors import UnsupportedAdapterError, UsageError
from lorary.hub.manifest import BaseIdentity, Filling, Manifest, Preprocessing
from tiny import SPECIAL, VOCABULARY, make_adapter, make_base, make_tokenizer, peft_reference

SENTINELS = 6
GAPS = {"t5": "sentinels", "bart": "mask"}
ONE = {"t5": "profit rose <extra_id_0> the bank", "bart": "profit rose [MASK] the bank shares fell"}
TWO = {"t5": "profit <extra_id_0> the <extra_id_1>", "bart": "profit [MASK] the [MASK]"}


@pytest.fixture(scope="module")
def gap_bases(tmp_path_factory):
    """A function that gives the folder of a tiny T5 with sentinels, or of a tiny BART."""
    made = {}

    def base(family):
        if family not in made:
            more = {"vocab_size": VOCABULARY + SENTINELS} if family == "t5" else {}
            made[family] = make_base(family, tmp_path_factory.mktemp("gaps") / family, **more)
            if family == "t5":
                tokenizer = make_tokenizer(family)
                names = [f"<extra_id_{number}>" for number in reversed(range(SENTINELS))]
                tokenizer.add_special_tokens({"extra_special_tokens": names})
                tokenizer.save_pretrained(made[family])
        return made[family]

    return base


def adapter(base, folder, family, longest=2, seed=1):
    make_adapter(base, folder, task="seq2seq", seed=seed)
    Manifest(
        "fill-mask",
        BaseIdentity("x"),
        preprocessing=Preprocessing(max_length=32),
        filling=Filling(GAPS[family], longest),
    ).write(folder)
    return folder


@pytest.fixture
def opened(gap_bases, tmp_path):
    """A backbone with the adapter ``it``, and the same in PEFT's hands."""

    def open_(family, **settings):
        folder = adapter(gap_bases(family), tmp_path / "it", family, **settings)
        backbone = Backbone.from_pretrained(str(gap_bases(family)))
        backbone.load(folder)
        return backbone, peft_reference(gap_bases(family), folder, task="seq2seq")

    return open_


def likelihood(reference, text_ids, start, written, count):
    """The log-probability (nats) of the ``count`` last tokens of ``written`` behind those before them."""
    with torch.no_grad():
        logits = reference(
            input_ids=torch.tensor([text_ids]), decoder_input_ids=torch.tensor([[start, *written[:-1]]])
        ).logits[0]
    found = logits.log_softmax(-1)[torch.arange(len(written)), torch.tensor(written)]
    return float(found[-count:].sum())


def test_more_beams_than_words_find_what_an_exhaustive_search_finds(opened):
    backbone, reference = opened("t5", longest=1)
    words = list(range(len(SPECIAL), VOCABULARY))
    answer = backbone.predict(ONE["t5"], "it", top_k=len(words))
    ids = backbone.tokenizer(ONE["t5"])["input_ids"]
    first, second = sentinel_ids(backbone.tokenizer)[:2]
    written = torch.tensor([[first, word, second] for word in words])
    read = torch.tensor([ids]).expand(len(words), -1)
    with torch.no_grad():
        made = reference(input_ids=read, decoder_input_ids=torch.tensor([[0, first, word] for word in words])).logits
    found = made.log_softmax(-1).gather(2, written.unsqueeze(-1))[:, 1:, 0].sum(dim=1)
    scores = dict(zip(words, found.tolist(), strict=True))
    best = sorted(words, key=lambda word: -scores[word])
    assert [one["token"] for one in answer] == [[word] for word in best]
    want = torch.tensor([scores[word] for word in best]).exp().tolist()
    assert [one["score"] for one in answer] == pytest.approx(want, rel=1e-3)
    word = backbone.tokenizer.decode([best[0]])
    assert (answer[0]["token_str"], answer[0]["sequence"]) == (word, f"profit rose {word} the bank")


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_scores_are_the_probabilities_of_what_is_written(opened, family):
    """Of the fillings and of the text's next tokens, but not of those that are given."""
    backbone, reference = opened(family)
    tokenizer, start = backbone.tokenizer, reference.config.decoder_start_token_id
    answer = backbone.predict(TWO[family], "it", top_k=3)
    assert len(answer) == 2
    ids = tokenizer(TWO[family])["input_ids"]
    for first, second in zip(*answer, strict=True):
        assert first["sequence"] == second["sequence"]
        one, two = first["token"], second["token"]
        if family == "t5":
            a, b, c = sentinel_ids(tokenizer)[:3]
            want = likelihood(reference, ids, start, [a, *one, b], len(one) + 1)
            want += likelihood(reference, ids, start, [a, *one, b, *two, c], len(two) + 1)
            assert one
            assert two
        else:
            before, the, end = (tokenizer(text)["input_ids"] for text in ("profit", "the", ""))
            written = [*before[:-1], *one, *the[1:-1], *two, end[-1]]
            want = likelihood(reference, ids, start, written, len(one) + len(two) + 2)
        assert torch.tensor(first["score"]).log().item() == pytest.approx(want, rel=1e-4)
        assert first["score"] == second["score"]
        filled = " ".join(filter(None, ["profit", first["token_str"], "the", second["token_str"]]))
        assert first["sequence"] == filled
    scores = [one["score"] for one in answer[0]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_batch_is_its_rows_alone(opened, gap_bases, tmp_path, family):
    backbone, _ = opened(family)
    backbone.load(adapter(gap_bases(family), tmp_path / "other", family, longest=3, seed=5))
    rows, names = [ONE[family], TWO[family], ONE[family]], ["it", "other", "other"]
    mixed = backbone.predict(rows, names)
    for row, name, got in zip(rows, names, mixed, strict=True):
        assert_alike(got, backbone.predict(row, name))
    assert [one["token"] for one in mixed[0]] != [one["token"] for one in mixed[2]]
    (one,) = backbone.predict([ONE[family]], "it", top_k=1)
    assert_alike(one, mixed[0][:1])  # the first of five is the first of one
    texts = backbone.predict([{"text": ONE[family]}], "it")
    assert_alike(texts[0], mixed[0])


def assert_alike(got, want):
    if isinstance(want, list):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_alike(one, other)
        return
    assert {**got, "score": 0} == {**want, "score": 0}
    assert got["score"] == pytest.approx(want["score"], rel=1e-4)


def test_gaps_end_with_the_text_or_with_as_many_tokens_as_were_learned():
    tokenizer = make_tokenizer("bart")
    profit, rose, fell, sales = (tokenizer.convert_tokens_to_ids(word) for word in ("profit", "rose", "fell", "sales"))
    ids = tokenizer("profit [MASK] rose fell")["input_ids"]
    gapped = find_gaps(ids, tokenizer, "mask", 3)
    begin, end = ids[0], ids[-1]
    assert gapped.step([]).token == begin
    assert gapped.step([]).given
    here = [begin, profit]
    assert gapped.step(here) == gapped.step([*here, sales])  # a gap may be empty: what comes next may come at once
    assert (gapped.step(here).token, gapped.step(here).free) == (rose, True)
    assert (gapped.step([*here, rose]).token, gapped.step([*here, rose]).free) == (fell, True)
    long = gapped.step([*here, rose, sales, rose])
    assert (long.token, long.free, long.given) == (fell, False, False)
    done = [*here, rose, sales, rose, fell, end]
    assert gapped.fillings(done) == [(rose, sales)]
    assert gapped.whole([(rose, sales)]) == [begin, profit, rose, sales, rose, fell, end]


@pytest.mark.parametrize(
    ("family", "row", "params", "message"),
    [
        ("t5", "profit rose", {}, "has no <extra_id_0>"),
        ("t5", "<extra_id_1> rose <extra_id_0>", {}, "a row's gaps are <extra_id_1> <extra_id_0>: expected"),
        ("t5", "a <extra_id_0> <extra_id_0>", {}, "in this order, 5 at most"),
        ("bart", "profit rose", {}, r"has no \[MASK\] within its first 4 tokens"),
        ("bart", ONE["bart"], {"targets": ["rose"]}, "targets: an encoder-decoder fills"),
        ("t5", ONE["t5"], {"top_k": 101}, "from 1 to 100"),
        ("t5", ONE["t5"], {"num_beams": 3}, "doesn't take num_beams"),
    ],
)
def test_what_cannot_be_filled(opened, family, row, params, message):
    backbone, _ = opened(family)
    with pytest.raises(UsageError, match=message):
        backbone.predict(row, "it", **params)


def test_without_word_of_how_gaps_are_filled_a_t5_has_no_masks(gap_bases, tmp_path):
    folder = make_adapter(gap_bases("t5"), tmp_path / "it", task="seq2seq")
    Manifest("fill-mask", BaseIdentity("x")).write(folder)
    with pytest.raises(UnsupportedAdapterError, match="no fill-mask head for the architecture 't5'"):
        Backbone.from_pretrained(str(gap_bases("t5"))).load(folder)


@pytest.mark.parametrize(("family", "task"), [("bert", "feature-extraction"), ("llama", "text-generation")])
def test_only_an_encoder_decoder_writes_what_fills_a_gap(bases, tmp_path, family, task):
    folder = make_adapter(bases(family), tmp_path / "it", task=task)
    Manifest("fill-mask", BaseIdentity("x"), filling=Filling("mask", 2)).write(folder)
    backbone = Backbone.from_pretrained(str(bases(family)))
    backbone.load(folder)
    with pytest.raises(UsageError, match="writes what fills a gap, which takes an encoder-decoder"):
        backbone.predict(ONE["bart"], "it")


def test_the_sentinels_of_mt5_begin_with_a_space():
    class Pieces:
        unk_token_id = 2

        def convert_tokens_to_ids(self, token):
            return {"\u2581<extra_id_0>": 9, "\u2581<extra_id_1>": 8}.get(token, 2)

    assert sentinel_ids(Pieces()) == (9, 8)
