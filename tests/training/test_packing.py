"""Packed rows: the loss and the gradients of the same rows padded, on models that keep rows apart, and on no others."""

from __future__ import annotations

import pytest
import torch
import transformers as t
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from lorary.hub.errors import RecipeError, TrainingError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.fitting.trainer import make_trainer
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.tasks.rows.packing import PackingCollator, first_fit, keeps_rows_apart
from samples import WORDS, bpe_tokenizer, save_base, write_jsonl
from tiny import make_config

VOCABULARY = 60
LENGTHS = (3, 11, 2, 7, 7, 5)
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS = {
    "neox": lambda: t.GPTNeoXConfig(**_SIZES, intermediate_size=64, max_position_embeddings=64),
    "opt": lambda: t.OPTConfig(**_SIZES, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32),
    "bloom": lambda: t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "falcon": lambda: t.FalconConfig(**_SIZES, new_decoder_architecture=False),
    "mpt": lambda: t.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
}


def make_model(family, attention="sdpa"):
    torch.manual_seed(0)
    config = OTHERS[family]() if family in OTHERS else make_config(family)
    kwargs = {} if family in OTHERS else {"attn_implementation": attention}
    model = t.AutoModelForCausalLM.from_config(config, **kwargs)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def make_rows(lengths=LENGTHS, vocabulary=40):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "labels": [-100, -100, *row[2:]]} for row in rows]


def test_rows_share_sequences_no_longer_than_the_longest_row():
    assert first_fit([3, 11, 2, 7, 7, 5], 11) == [[1], [3, 0], [4, 2], [5]]
    collator = PackingCollator(0)
    batch = collator(make_rows())
    assert batch["input_ids"].shape == (4, 11)
    assert "attention_mask" not in batch
    assert batch["position_ids"][1].tolist() == [*range(7), *range(3), 0]
    assert int((batch["labels"] != -100).sum()) == sum(length - 2 for length in LENGTHS)
    assert collator.figures() == {"tokens": 35, "positions": 44, "padded_positions": 66}


def test_rows_that_cannot_share_are_padded_with_a_mask():
    batch = PackingCollator(0)(make_rows((5, 4)))
    assert "position_ids" not in batch
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 1, 0]]


def test_a_flat_batch_is_one_sequence_without_filling():
    batch = PackingCollator(0, flat=True)(make_rows())
    assert batch["input_ids"].shape == (1, sum(LENGTHS))


def alone(model, rows):
    """Summed loss over each row by itself, and the gradients."""
    model.zero_grad()
    total = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        loss = cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum", ignore_index=-100)
        loss.backward()
        total += float(loss.detach())
    return total, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_packed_rows_have_the_loss_and_the_gradients_of_rows_alone(family, attention, flat):
    model, rows = make_model(family, attention), make_rows()
    expected, gradients = alone(model, rows)
    model.zero_grad()
    batch = PackingCollator(0, flat)(rows)
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=-100)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral", "neox"])
def test_families_that_keep_rows_apart_are_found(family):
    assert keeps_rows_apart(make_model(family), [row["input_ids"] for row in make_rows()])


@pytest.mark.parametrize("family", ["opt", "bloom", "falcon", "mpt"])
def test_families_that_let_rows_see_each_other_are_found(family):
    model = make_model(family).train()
    assert not keeps_rows_apart(model, [row["input_ids"] for row in make_rows()])
    assert model.training


def test_one_row_is_enough_to_try_a_model_with():
    model = make_model("llama")
    assert keeps_rows_apart(model, [[5, 6, 7]])
    assert keeps_rows_apart(model, [[5, 5, 6], [6, 5]])
    assert not keeps_rows_apart(model, [[5, 5]])  # nothing else to put before it: not known, so no


@pytest.fixture
def make_ragged(make_recipe, tmp_path):
    """Recipes with plain texts of one word to twenty, trained without dropout."""
    rows = [{"text": " ".join([WORDS[index % 7], *["rose"] * (index * 5 % 19)])} for index in range(60)]
    path = write_jsonl(tmp_path / "ragged.jsonl", rows)

    def make(**settings):
        data = {"data.train": path, "data.test": None, "data.columns": {"text": "text"}}
        return make_recipe("text-generation", **{**data, "lora.dropout": 0.0, "training.epochs": 1, **settings})

    return make


def losses(recipe, folder):
    """The mean loss of the trained tokens over the training rows in the trainer's own batches, and their number."""
    ready = prepare(recipe, load_data(recipe), Reporter())
    trainer = make_trainer(ready.model, ready.base.tokenizer, ready.task, ready.train, None, recipe, folder)
    total = tokens = 0.0
    ready.model.eval()
    for batch in trainer.get_train_dataloader():
        count = int((batch["labels"] != -100).sum())
        with torch.no_grad():
            total += float(trainer.compute_loss(ready.model, dict(batch))) * count
        tokens += count
    return total / tokens, tokens, len(trainer.train_dataset)


def test_the_trainers_loss_is_the_same_however_rows_are_packed(make_ragged, tmp_path):
    padded, tokens, rows = losses(make_ragged(**{"training.packing": False}), tmp_path)
    for packing in ("batch", True):
        loss, packed_tokens, sequences = losses(make_ragged(**{"training.packing": packing}), tmp_path)
        assert loss == pytest.approx(padded, rel=1e-5)
        assert packed_tokens == tokens
        assert (sequences == rows) if packing == "batch" else (sequences < rows)


def test_packing_within_batches_trains_the_same_adapter(make_ragged, registry, tmp_path):
    for packing in (False, "batch"):
        settings = {"training.packing": packing, "training.early_stopping": 2, "data.validation_size": 0.2}
        train(make_ragged(output=str(tmp_path / str(packing)), **settings), registry)
    padded, packed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("False", "batch"))
    for key, tensor in padded.items():
        torch.testing.assert_close(packed[key], tensor, rtol=1e-3, atol=1e-4)


def test_rows_are_packed_within_batches_unless_said_otherwise(make_ragged, registry):
    counted = train(make_ragged(), registry).manifest.provenance["packing"]
    assert counted["tokens"] < counted["positions"] < 0.8 * counted["padded_positions"]


def test_full_sequences_pass_the_gate_and_say_what_a_step_sees(make_recipe, registry):
    reporter = Reporter()
    version = train(make_recipe("text-generation", rows=64, **{"training.packing": True}), registry, reporter)
    assert version.metrics["test"]["loss"] < version.metrics["untrained"]["loss"]
    assert any(line.startswith("64 rows are packed into ") for line in reporter.notices)


@pytest.fixture
def leaking(tmp_path):
    tokenizer = bpe_tokenizer()
    config = t.OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        max_position_embeddings=128, word_embed_proj_dim=32, pad_token_id=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return str(save_base(t.OPTForCausalLM(config), tokenizer, tmp_path / "opt"))


def test_a_model_that_leaks_is_trained_padded_and_says_so(make_recipe, registry, leaking):
    reporter = Reporter()
    version = train(make_recipe("text-generation", base=leaking, **{"training.epochs": 1}), registry, reporter)
    assert "packing" not in version.manifest.provenance
    assert any("OPTForCausalLM lets them see each other" in line for line in reporter.notices)


def test_packing_that_would_leak_is_refused_where_it_is_asked_for(make_recipe, registry, leaking):
    recipe = make_recipe("text-generation", base=leaking, **{"training.packing": True})
    with pytest.raises(TrainingError, match=r"training\.packing: .*OPTForCausalLM lets rows see each other; set it to"):
        train(recipe, registry)


def test_packing_knows_three_words(make_recipe):
    with pytest.raises(RecipeError, match=r"training\.packing: expected true, false or batch, found 'full'"):
        make_recipe("text-generation", **{"training.packing": "full"})


def test_the_warm_up_is_a_share_of_the_packed_sequences_steps(make_small, tmp_path):
    """40 rows make a dozen sequences, of whose steps a share of 0.06 isn't one: the first step would learn nothing."""
    settings = {"training.packing": True, "training.batch_size": 1, "training.epochs": 1}
    recipe = make_small("text-generation", **settings)
    ready = prepare(recipe, load_data(recipe), Reporter())
    trainer = make_trainer(ready.model, ready.base.tokenizer, ready.task, ready.train, None, recipe, tmp_path / "c")
    assert len(ready.train.features) * recipe.training.warmup >= 1 > len(trainer.train_dataset) * recipe.training.warmup
    assert trainer.args.warmup_steps == 0
