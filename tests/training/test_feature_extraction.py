"""Embeddings: losses and measures against the libraries that define them, and training that serves what it measured."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from tokenizers.normalizers import BertNormalizer

from lorary.adapters import Backbone
from lorary.adapters.predict.feature_extraction import pool
from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.errors import DataError, GateError, RecipeError, TrainingError
from lorary.hub.manifest import Pooling
from lorary.training import Recipe, train
from lorary.training.data import Example, load_data
from lorary.training.model import load_for
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.report.content import read_report
from lorary.training.tasks import make_task
from lorary.training.tasks.heads import embeddings
from lorary.training.tasks.heads.embeddings import LEFT_OUT, OTHER, OWN
from memory import memory_for
from samples import bpe_tokenizer, pair_rows, save_base, scored_rows, wordpiece_tokenizer, write_jsonl
from tiny import make_tokenizer

EMBED = "feature-extraction"
TRIPLES = {"text": "text", "positive": "positive", "negative": "negative"}
SCORED = {"text": "text", "text_pair": "text_pair", "score": "score"}


@pytest.fixture(scope="module")
def wordpiece():
    return wordpiece_tokenizer()


@pytest.fixture
def make(make_small, tmp_path):
    """``make(rows, held)``: a recipe for these rows, its columns being theirs."""

    def recipe(rows, held, family="bert", **settings) -> Recipe:
        columns = {role: role for role in rows[0]}
        files = {
            "data.train": write_jsonl(tmp_path / "a.jsonl", rows),
            "data.test": write_jsonl(tmp_path / "b.jsonl", held),
        }
        return make_small(EMBED, family, **files, **{"data.columns": columns, **settings})

    return recipe


def encode(task, tokenizer, *rows, max_length=64):
    examples = [Example(row, f"rows, row {number}") for number, row in enumerate(rows, start=1)]
    return task.encode(examples, tokenizer, max_length, lambda line: None)


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


# Losses


@pytest.mark.parametrize("negatives", [0, 1])
def test_ranking_is_multiple_negatives_ranking(negatives):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    texts, candidates = vectors(6, 8), vectors(6 * (1 + negatives), 8)
    relation = embeddings.relations(torch.arange(6), 100 + torch.arange(len(candidates)))
    assert set(relation.flatten().tolist()) == {OWN, OTHER}
    theirs = losses.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0)
    expected = theirs.compute_loss_from_embeddings([texts, *candidates.split(6)], torch.zeros(6))
    assert float(embeddings.ranking(texts, candidates, relation, 0.05)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("scores", [[0.1, 0.9, 0.5, 0.5, -2.0], [1.0, 0.0, 1.0, 0.0, 0.0], [3.0] * 5])
def test_cosent_is_the_librarys(scores):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    texts, others = vectors(5, 8), vectors(5, 9)[:, :8]
    theirs = losses.CoSENTLoss(torch.nn.Identity(), scale=20.0)
    expected = theirs.compute_loss_from_embeddings([texts, others], torch.tensor(scores))
    assert float(embeddings.cosent(texts, others, torch.tensor(scores), 0.05)) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_losses_of_rows_are_those_of_one_batch_of_them_all():
    texts = [("a", "A"), ("b", "B"), ("c", "C"), ("a", "D"), ("D", "E")]
    rows = [row * torch.tensor([[1.0], [2.0]]) for row in vectors(5, 2, 8)]
    rows[3][0], rows[4][0] = rows[0][0], rows[3][1]
    losses, nearest = embeddings.ranking_of_rows(rows, texts, 0.05)
    numbers = {text: number for number, text in enumerate("abcABCDE")}
    own, given = (torch.tensor([numbers[row[place]] for row in texts]) for place in (0, 1))
    made = torch.stack(rows)
    whole = embeddings.ranking(made[:, 0], made[:, 1], embeddings.relations(own, given), 0.05)
    assert sum(losses) / 5 == pytest.approx(float(whole), rel=1e-5)
    cosines = torch.nn.functional.cosine_similarity(made[1, 0], made[:, 1])
    assert nearest[1] == "ABCDE"[int(cosines.argmax())]
    assert nearest[0] != "D"  # a right one too, so no mistake to be shown

    scores = [0.1, 0.9, 0.5, 0.5, 0.2]
    cosines = [float(torch.nn.functional.cosine_similarity(row[0], row[1], dim=0)) / 0.1 for row in rows]
    for place, found in enumerate(embeddings.cosent_of_rows(rows, scores, 0.1)):
        wrong_by = [
            (one - other) if scores[place] < scores[against] else (other - one)
            for against, (one, other) in enumerate((cosines[place], cosine) for cosine in cosines)
            if scores[place] != scores[against]
        ]
        assert found == pytest.approx(math.log1p(sum(map(math.exp, wrong_by))), rel=1e-4)


def test_the_worst_rows_say_which_text_was_nearer(make, registry, tmp_path):
    rows, held = pair_rows(16), pair_rows(12, seed=9)
    train(make(rows, held, **{"report.write": True, "report.rows": 5, "training.max_steps": 1}), registry)
    report = read_report(tmp_path / "out" / "report.json", "out")
    assert (len(report.worst), report.ranked) == (5, 12)
    assert [row.loss for row in report.worst] == sorted((row.loss for row in report.worst), reverse=True)
    positives = {row["positive"] for row in held}
    for row in report.worst:
        assert row.right == (row.expected == row.found)
        assert {row.expected, row.found} <= positives
    settings = {"name": "scored", "output": str(tmp_path / "scored"), "report.write": True, "training.max_steps": 1}
    train(make(scored_rows(16), scored_rows(8, seed=9), **settings), registry)
    assert read_report(tmp_path / "scored" / "report.json", "out").worst[0].found.startswith("cosine ")


def test_a_smaller_batch_compares_with_fewer_texts_and_says_so(make, registry):
    reporter = Reporter()
    recipe = make(pair_rows(16), pair_rows(8, seed=9), **{"training.batch_size": 8, "training.max_steps": 1})
    with memory_for(8):  # a row has two texts
        train(recipe, registry, reporter)
    assert any("now 4 rows in place of 8, which is easier" in line for line in reporter.notices)


def test_what_is_no_negative_is_left_out():
    numbers = {name: number for number, name in enumerate("abdxyzn")}
    texts, given = (torch.tensor([numbers[name] for name in names]) for names in ("abad", "xyzxdnnn"))
    relation = embeddings.relations(texts, given)
    assert relation.tolist() == [
        [OWN, OTHER, LEFT_OUT, LEFT_OUT, OTHER, OTHER, OTHER, OTHER],  # z is the positive of the same text, x again
        [OTHER, OWN, OTHER, OTHER, OTHER, OTHER, OTHER, OTHER],
        [LEFT_OUT, OTHER, OWN, OTHER, OTHER, OTHER, OTHER, OTHER],
        [LEFT_OUT, OTHER, OTHER, OWN, LEFT_OUT, OTHER, OTHER, OTHER],  # d is the text itself
    ]
    texts, candidates = vectors(4, 8), vectors(8, 8)
    texts.requires_grad_()
    loss = embeddings.ranking(texts[:1], candidates, relation[:1], 0.05)
    loss.backward()
    assert torch.isfinite(texts.grad).all()
    kept = relation[0] != LEFT_OUT
    same = embeddings.ranking(texts[:1], candidates[kept], relation[:1, kept], 0.05)
    assert loss.item() == pytest.approx(same.item())


@pytest.mark.parametrize("mode", ["mean", "cls", "last"])
def test_a_batch_is_pooled_as_predict_pools_a_row(mode):
    states, counts = vectors(3, 5, 4), [5, 1, 3]
    mask = torch.tensor([[1] * count + [0] * (5 - count) for count in counts])
    pooled = embeddings.pool_batch(states, mask, mode)
    for row, count in enumerate(counts):
        torch.testing.assert_close(pooled[row], pool(states[row, :count], Pooling(mode)))


# Measures


def test_correlations_are_scipys():
    from scipy.stats import pearsonr, spearmanr

    rows, scores = vectors(12, 2, 8), [float(index % 5) for index in range(12)]
    cosines = torch.nn.functional.cosine_similarity(rows[:, 0], rows[:, 1]).tolist()
    found = embeddings.correlations(list(rows), scores)
    assert found["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic)
    assert found["pearson"] == pytest.approx(pearsonr(cosines, scores).statistic)
    assert embeddings.correlations(list(rows), [1.0] * 12) == {"spearman": 0.0, "pearson": 0.0}


def test_retrieval_is_the_librarys():
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    texts = [(f"q{index}", f"p{index}") for index in range(30)] + [("q0", "p30"), ("q1", "p2")]
    table = dict(zip(dict.fromkeys(t for row in texts for t in row), vectors(61, 6), strict=True))

    class Model(torch.nn.Module):
        similarity_fn_name = "cosine"
        model_card_data = type("Card", (), {"set_evaluation_metrics": lambda *_: None})()

        def encode(self, names, **_):
            return torch.stack([table[name] for name in names])

        encode_query = encode_document = encode

    from sentence_transformers.util import cos_sim

    positives: dict[str, set[str]] = {}
    for text, positive in texts:
        positives.setdefault(text, set()).add(positive)
    corpus = {positive: positive for _, positive in texts}
    evaluator = evaluation.InformationRetrievalEvaluator(
        {text: text for text in positives}, corpus, positives, accuracy_at_k=[1], mrr_at_k=[10],
        precision_recall_at_k=[10], ndcg_at_k=[10], map_at_k=[10], score_functions={"cosine": cos_sim},
    )  # fmt: skip
    expected = evaluator.compute_metrices(Model())["cosine"]
    found = embeddings.retrieval([torch.stack([table[name] for name in row]) for row in texts], texts)
    assert found["accuracy@1"] == pytest.approx(expected["accuracy@k"][1])
    assert found["mrr@10"] == pytest.approx(expected["mrr@k"][10])
    assert found["recall@10"] == pytest.approx(expected["recall@k"][10])
    assert found.keys() == {"accuracy@1", "mrr@10", "recall@10"}


def test_embeddings_that_are_all_alike_find_nothing():
    texts = [(f"q{index}", f"p{index}") for index in range(20)]
    found = embeddings.retrieval([torch.ones(2, 4)] * 20, texts)
    assert found == {"accuracy@1": 0.0, "mrr@10": 0.0, "recall@10": 0.0}


def test_triples_are_measured_by_their_negatives_too():
    good, bad = torch.tensor([[1.0, 0], [1, 0.1], [0, 1]]), torch.tensor([[1.0, 0], [0, 1], [1, 0.1]])
    found = embeddings.retrieval(
        [good, bad, good, good], [("a", "b", "c"), ("d", "e", "f"), ("g", "h", "i"), ("j", "k", "l")]
    )
    assert found["triplet_accuracy"] == 0.75


# Rows and recipes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "positive": ""}, "positive: is empty"),
        ({"text": "a"}, "positive: missing"),
        ({"text": "a", "positive": 3}, "positive: expected a text, found 3"),
    ],
)
def test_a_bad_pair_is_named(row, message, make):
    with pytest.raises(DataError) as caught:
        load_data(make([*pair_rows(4), row], pair_rows(4, seed=1)))
    assert message in str(caught.value)
    assert "a.jsonl, row 5" in str(caught.value)


@pytest.mark.parametrize("score", [None, "high", True, "", [1], "nan"])
def test_a_score_is_a_number(score, make):
    with pytest.raises(DataError, match="row 5, score: expected a number, found"):
        load_data(make([*scored_rows(4), {"text": "a", "text_pair": "b", "score": score}], scored_rows(4, seed=1)))


def test_rows_that_hold_nothing_to_be_told_apart_are_refused(make):
    same = [{**row, "positive": "profit"} for row in pair_rows(8)]
    with pytest.raises(DataError, match="every training row has the same positive"):
        make_task(make(same, same[:2]), None).begin([Example(row, "") for row in same])
    even = [{**row, "score": 1} for row in scored_rows(8)]
    with pytest.raises(DataError, match="every training row has the score 1"):
        make_task(make(even, even[:2]), None).begin([Example(row, "") for row in even])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training.batch_size": 1}, "training.batch_size: rows are told from the others of their batch"),
        ({"embedding.pooling": "max"}, "embedding.pooling: expected one of mean, cls, last, found 'max'"),
        ({"embedding.temperature": 0}, "embedding.temperature: "),
        ({"data.labels": ("a", "b")}, "data.labels: feature-extraction has no labels"),
        ({"data.columns": {"text": "a", "score": "b"}}, "feature-extraction takes"),
        ({"training.stride": 3}, "training.stride: only question-answering"),
    ],
)
def test_settings_that_contradict_the_task_are_refused(settings, message, make_recipe):
    with pytest.raises(RecipeError) as caught:
        make_recipe(EMBED, **settings)
    assert message in str(caught.value)


def test_other_tasks_have_no_embedding(make_recipe):
    for name, value in (("pooling", "cls"), ("normalize", True), ("temperature", 0.1)):
        with pytest.raises(RecipeError, match=f"embedding.{name}: only feature-extraction has it"):
            make_recipe(**{f"embedding.{name}": value})


def test_the_recipe_survives_its_file(make_recipe, tmp_path):
    recipe = make_recipe(EMBED)
    assert (recipe.embedding.pooling, recipe.embedding.normalize, recipe.embedding.temperature) == (None, True, 0.05)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_a_batch_is_rows_of_texts(make, wordpiece):
    rows = pair_rows(2, negative=True)
    task = make_task(make(rows, rows), None)
    encoded = encode(task, wordpiece, *rows)
    batch = task.collator(wordpiece)([dict(feature) for feature in encoded.features])
    assert batch["input_ids"].shape[:2] == (2, 3)
    assert wordpiece.batch_decode(batch["input_ids"].flatten(0, 1), skip_special_tokens=True) == [
        row[role] for row in rows for role in ("text", "positive", "negative")
    ]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["texts"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert encoded.golds[0] == (rows[0]["text"], rows[0]["positive"], rows[0]["negative"])


def test_long_texts_are_cut_and_counted(make, wordpiece):
    rows = [{"text": "profit " * 30, "positive": "sales " * 7}, {"text": "a", "positive": "b"}]
    encoded = encode(make_task(make(rows, rows), None), wordpiece, *rows, max_length=8)
    assert [(length.full, length.kept) for length in encoded.lengths] == [(32 + 9, 16), (6, 6)]


@pytest.mark.parametrize("family", ["wordpiece", "bpe"])
def test_a_text_of_no_token_is_a_bad_row(family, make):
    tokenizer = {"wordpiece": wordpiece_tokenizer, "bpe": bpe_tokenizer}[family]()
    tokenizer.backend_tokenizer.normalizer = BertNormalizer()
    rows = [{"text": "profit", "positive": "\u200b"}, {"text": "a", "positive": "b"}, {"text": "\x01", "positive": "b"}]
    with pytest.raises(DataError) as caught:
        encode(make_task(make(rows, rows), None), tokenizer, *rows)
    places = [problem.split(":")[0] for problem in caught.value.problems]
    assert places == ["rows, row 1, positive", "rows, row 3, text"]
    assert "'\\u200b' comes to no token" in caught.value.problems[0]


# Training


def predicted(recipe, registry, texts, **params):
    backbone = Backbone.from_pretrained(recipe.base, device="cpu", registry=registry)
    backbone.load("tiny")
    return torch.tensor(backbone.predict(texts, "tiny", **params))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama"])
def test_pairs_are_learned_and_predict_gives_what_was_measured(family, make, registry, tmp_path):
    rows, held = pair_rows(160), pair_rows(24, seed=9)
    recipe = make(rows, held, family, **{"training.epochs": 5, "training.batch_size": 16})
    version = train(recipe, registry)
    assert version.metrics["test"]["mrr@10"] > version.metrics["untrained"]["mrr@10"] + 0.12
    assert version.manifest.pooling == Pooling("last" if family == "llama" else "mean", normalize=True)
    assert version.manifest.labels is None
    assert not any("lora_" not in key for key in read_checkpoint(tmp_path / "out").tensors)  # no head
    assert read_checkpoint(tmp_path / "out").config["task_type"] == "FEATURE_EXTRACTION"

    # Through a backbone as a user opens it: a language model, where the base is one.
    made = [predicted(recipe, registry, [row[role] for row in held]) for role in ("text", "positive")]
    assert made[0].norm(dim=1).tolist() == pytest.approx([1.0] * len(held), abs=1e-4)
    texts = [(row["text"], row["positive"]) for row in held]
    found = embeddings.retrieval(list(torch.stack(made, dim=1)), texts)
    assert found == pytest.approx({name: version.metrics["test"][name] for name in found}, abs=0.02)


def test_peft_gives_the_same_embeddings(make, registry, tmp_path):
    from peft import PeftModel
    from safetensors.torch import load_file

    recipe = make(pair_rows(16), pair_rows(8, seed=9), **{"training.epochs": 1, "embedding.normalize": False})
    version = train(recipe, registry)
    model = PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(recipe.base), tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(recipe.base)
    with torch.no_grad():
        states = model(**tokenizer("the profit rose", return_tensors="pt")).last_hidden_state[0]
        golden = load_file(tmp_path / "out" / "golden.safetensors")
        for index, ids in enumerate(version.manifest.golden_rows):
            own = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
            torch.testing.assert_close(golden[str(index)], own, rtol=1e-5, atol=1e-5)
    (vector,) = predicted(recipe, registry, ["the profit rose"])
    torch.testing.assert_close(vector, states.mean(dim=0), rtol=1e-4, atol=1e-4)


def test_scored_pairs_are_learned(make, registry):
    recipe = make(
        scored_rows(160),
        scored_rows(40, seed=9),
        layers=2,
        **{"training.epochs": 10, "training.learning_rate": 0.003, "lora.rank": 8},
    )
    version = train(recipe, registry)
    assert version.metrics["test"]["spearman"] > version.metrics["untrained"]["spearman"] + 0.3
    assert version.metrics["test"].keys() == {"spearman", "pearson"}


def test_another_pooling_is_trained_and_served(make, registry):
    """After one step the first tokens' cosines differ by rounding alone, and so do the ranks that the gate is shown."""
    settings = {"training.epochs": 1, "embedding.pooling": "cls", "embedding.normalize": False}
    version = train(make(pair_rows(16), pair_rows(8, seed=9), **settings), registry)
    assert version.manifest.pooling == Pooling("cls", normalize=False)


def test_triples_are_learned_with_early_stopping(make, registry):
    rows, held = pair_rows(160, negative=True), pair_rows(24, seed=9, negative=True)
    recipe = make(rows, held, **{"training.epochs": 4, "training.early_stopping": 2, "training.batch_size": 16})
    version = train(recipe, registry)
    assert version.metrics["test"]["triplet_accuracy"] > version.metrics["untrained"]["triplet_accuracy"]
    assert version.manifest.provenance["best_epoch"] >= 1
    assert not any(math.isnan(value) for value in version.metrics["test"].values())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_quantized_bases_learn(family, make, registry):
    pytest.importorskip("bitsandbytes")
    recipe = make(pair_rows(128), pair_rows(16, seed=9), family, method="qlora", **{"training.epochs": 4})
    version = train(recipe, registry)
    assert version.quantization == "nf4"
    assert version.metrics["test"]["mrr@10"] > version.metrics["untrained"]["mrr@10"]


def test_verify_recomputes_the_golden_states_on_a_language_model(make, registry):
    recipe = make(pair_rows(16), pair_rows(8, seed=9), "llama", **{"training.epochs": 1})
    train(recipe, registry)
    backbone = Backbone.from_pretrained(recipe.base, device="cpu", registry=registry)
    backbone.load("tiny")
    assert backbone.verify("tiny").matches is True


def test_the_gate_notices_another_pooling(make, tmp_path):
    """`predict` pools as the manifest says; should that ever differ from training, nothing may be registered."""
    recipe = make(pair_rows(16), pair_rows(8, seed=9))
    prepared = prepare(recipe, load_data(recipe), Reporter())
    task = prepared.task

    class Shifted:
        def predict(self, texts, name, batch_size):
            return [[1.0] * 32 for _ in texts]

        def logits(self, rows, name):
            return [vectors(len(row), 32) for row in rows]

    with pytest.raises(GateError, match=r"predict gives .* another embedding than training does"):
        task.through(Shifted(), "tiny", prepared.test)


def test_bases_whose_embedding_would_say_nothing_are_refused(make_recipe, make, tmp_path):
    tokenizer = make_tokenizer("t5")
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    folder = save_base(transformers.T5ForConditionalGeneration(config), tokenizer, tmp_path / "t5")
    recipe = make_recipe(EMBED, base=str(folder))
    with pytest.raises(TrainingError, match="can't be trained on T5Model: its passes run the decoder too"):
        load_for(make_task(recipe, None), recipe)
    recipe = make_recipe(EMBED, "llama", **{"embedding.pooling": "cls"})
    with pytest.raises(TrainingError, match="the first token of LlamaModel sees no other"):
        load_for(make_task(recipe, None), recipe)


def test_padding_never_moves_the_last_token(make_recipe):
    tokenizer = bpe_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    rows = [{"text": "profit", "positive": "sales rose and fell again"}, {"text": "the bank said so", "positive": "a"}]
    task = make_task(make_recipe(EMBED, "llama"), None)
    batch = task.collator(tokenizer)([dict(feature) for feature in encode(task, tokenizer, *rows).features])
    texts = [row[role] for row in rows for role in ("text", "positive")]
    padded = batch["input_ids"].flatten(0, 1), batch["attention_mask"].flatten(0, 1)
    for ids, mask, text in zip(*padded, texts, strict=True):
        count = int(mask.sum())
        assert ids[:count].tolist() == tokenizer(text)["input_ids"]
