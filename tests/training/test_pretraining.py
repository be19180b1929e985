"""A base model and its tokenizer from scratch: recipe, tokenizer, run, catalogue, and adapters on it by its name."""

from __future__ import annotations

import json
import math
import random
import re
import signal
import sqlite3
from contextlib import closing

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lorary.adapters import Backbone
from lorary.adapters.text.gaps import sentinel_ids
from lorary.hub.base_files import resolve_base
from lorary.hub.cli.main import main
from lorary.hub.errors import (
    DataError,
    InterruptedRunError,
    RecipeError,
    RegistryConflictError,
    TrainingError,
    UnknownReferenceError,
)
from lorary.hub.manifest import Filling
from lorary.hub.registry import Registry
from lorary.training import Recipe, train
from lorary.training.pretraining import PretrainRecipe, run
from lorary.training.pretraining.corpus import load_corpus
from lorary.training.pretraining.run import pretrain
from lorary.training.pretraining.tokenizer import train_tokenizer
from lorary.training.progress import Reporter
from memory import memory_for
from samples import summary_rows, tone_rows, write_jsonl
from stops import Signal

WHO = ("the miller", "the smith", "a weaver", "the old widow", "a sailor", "the mayor")
DOES = ("grinds", "mends", "weaves", "sells", "carries", "counts")
WHAT = ("the grain", "a kettle", "blue cloth", "dry fish", "green ropes", "copper coins")


def corpus(path, count=120, seed=0):
    """Sentences in which who, does and what belong together."""
    random_ = random.Random(seed)
    notes = []
    for _ in range(count):
        rows = random_.choices(range(6), k=4)
        notes.append("\n".join(f"{WHO[i]} {DOES[i]} {WHAT[i]}." for i in rows))
    path.write_text("\n\n".join(notes), encoding="utf-8")
    return str(path)


@pytest.fixture
def make(tmp_path):
    def make(architecture="bert", **settings):
        flags = {
            "name": "village", "architecture": architecture, "data.train": corpus(tmp_path / "train.txt"),
            "data.test": corpus(tmp_path / "test.txt", 24, seed=1),
            "tokenizer.vocab_size": 420 if architecture == "t5" else 320,
            "model.hidden_size": 32, "model.layers": 2, "model.heads": 2, "model.context": 32, "training.epochs": 8,
            "training.batch_size": 8, "training.learning_rate": 0.01, "device": "cpu",
            "output": str(tmp_path / "run"),
        }  # fmt: skip
        return PretrainRecipe.from_flags({**flags, **settings})

    return make


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_a_base_learns_is_catalogued_and_loads_like_any_other(architecture, make, registry):
    # A masked model learns from a few tokens of each block only, and stays at their frequencies for long.
    few = {"training.epochs": 8, "training.mlm_probability": 0.3, "training.learning_rate": 0.005}
    slow = {"training.epochs": 20, "training.mlm_probability": 0.3, "training.learning_rate": 0.005, "training.seed": 1}
    settings = {"bert": slow, "llama": {"training.epochs": 4}, "t5": few}[architecture]
    base = pretrain(make(architecture, **{"model.layers": 1, **settings}), registry)
    test, unigram = base.metrics["test"], base.metrics["unigram"]
    assert test["loss"] < {"bert": 0.97, "llama": 0.7, "t5": 0.8}[architecture] * unigram["loss"]
    assert registry.bases.find("village") == base
    autos = {"bert": AutoModelForMaskedLM, "llama": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}
    model = autos[architecture].from_pretrained(base.folder)
    assert model.num_parameters() == base.parameters
    assert AutoModel.from_pretrained(base.folder).config.model_type == base.architecture == architecture
    assert Backbone.from_pretrained("village", registry=registry).identity.fingerprint == base.fingerprint
    assert registry.verify() == []
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    text = "the miller grinds the grain."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).replace(" .", ".") == text
    assert list(registry.path.parent.glob("run*")) == []
    told = json.dumps(dict(base.provenance))
    assert str(registry.path.parent) not in told
    assert base.provenance["data"]["train"]["sha256"]
    assert base.provenance["vocabulary"] == len(tokenizer)


def test_bits_per_byte_are_the_loss_over_the_text(make, registry, tmp_path):
    base = pretrain(make("llama", **{"training.max_steps": 3}), registry)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base.folder), AutoTokenizer.from_pretrained(base.folder)
    documents = (tmp_path / "test.txt").read_text().split("\n\n")
    ids = [token for text in documents for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    total = count = 0
    for start in range(0, len(ids), 32):
        block = torch.tensor([ids[start : start + 32]])
        if block.shape[1] > 1:
            with torch.no_grad():
                total += float(model(input_ids=block, labels=block).loss) * (block.shape[1] - 1)
            count += block.shape[1] - 1
    assert base.metrics["test"]["loss"] == pytest.approx(total / count, rel=1e-4)
    size = sum(len(text.encode()) for text in documents)
    assert base.metrics["test"]["bits_per_byte"] == pytest.approx(
        total / count * len(ids) / math.log(2) / size, rel=1e-4
    )


def test_the_same_recipe_gives_the_same_base(make, registry, tmp_path):
    token = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"
    settings = {"training.max_steps": 4, "data.text": token}
    first = pretrain(make(**settings), registry)
    assert not any(token.encode() in path.read_bytes() for path in registry.path.parent.rglob("*") if path.is_file())
    torch.rand(3)
    second = pretrain(make(**settings), Registry(tmp_path / "other" / "registry.db"))
    assert first.digest == second.digest
    assert first.fingerprint == second.fingerprint


def test_a_task_adapter_and_a_domain_adapter_on_a_base_by_its_name(make, registry, tmp_path):
    pretrain(make(**{"training.max_steps": 1, "model.layers": 1}), registry)
    flags = {
        "name": "tone", "domain": "finance", "task": "text-classification", "base": "village", "device": "cpu",
        "data.train": write_jsonl(tmp_path / "rows.jsonl", tone_rows(40)), "output": str(tmp_path / "out"),
        "training.max_steps": 1, "training.max_length": 64, "report.write": False,
    }  # fmt: skip
    version = train(Recipe.from_flags(flags), registry)
    assert version.base_id == "village"
    assert str(tmp_path) not in version.manifest.to_json()
    backbone = Backbone.from_pretrained("village", registry=registry)
    assert backbone.load("tone").notes == ()
    assert backbone.predict(["profit rose"], "tone")[0]["label"] in ("bad", "good")
    words = {
        **flags, "name": "words", "task": "fill-mask", "data.train": corpus(tmp_path / "more.txt"),
        "output": str(tmp_path / "words"),
    }  # fmt: skip
    train(Recipe.from_flags(words), registry)
    backbone.load("words")
    assert len(backbone.predict(["the miller [MASK] the grain."], "words")[0]) == 5
    assert {found.reference for found in registry.find(base="village")} == {"tone@1", "words@1"}
    with pytest.raises(RegistryConflictError, match="'village' is needed by tone@1, words@1"):
        registry.bases.remove("village")
    registry.bases.remove("village", force=True)
    assert registry.bases.all() == []
    assert [found.reference for found in registry.find(base="village")] == ["tone@1", "words@1"]


def test_a_t5_has_the_layers_of_version_1_1_and_its_vocabulary_t5s_own(make):
    recipe = make("t5")
    assert (recipe.tokenizer.kind, recipe.training.mlm_probability, recipe.training.mean_span) == ("unigram", 0.15, 3.0)
    for kind in ("unigram", "bpe"):
        recipe = make("t5", **{"tokenizer.kind": kind})
        tokenizer = train_tokenizer(recipe, ["Die Mühle läuft. " * 3, "Der Müller mahlt das Korn."] * 4)
        assert len(tokenizer) <= 420
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
        assert sentinel_ids(tokenizer) == tuple(range(len(tokenizer) - 1, len(tokenizer) - 101, -1))
        ids = tokenizer("Die <extra_id_0> läuft")["input_ids"]
        assert ids.count(sentinel_ids(tokenizer)[0]) == 1
        assert ids[-1] == 1
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == ["Die", "läuft"]
        assert tokenizer("Die", "Mühle")["input_ids"].count(1) == 2
    config = run.make_model(recipe, tokenizer).config
    assert (config.feed_forward_proj, config.scale_decoder_outputs, config.d_ff) == ("gated-gelu", True, 96)
    assert (config.decoder_start_token_id, config.eos_token_id, config.num_decoder_layers) == (0, 1, 2)


def test_a_domain_adapter_and_a_summarizer_on_a_t5_by_its_name(make, registry, tmp_path):
    pretrain(make("t5", **{"training.max_steps": 1, "model.layers": 1, "tokenizer.kind": "bpe"}), registry)
    flags = {
        "name": "words", "domain": "village", "task": "fill-mask", "base": "village", "device": "cpu",
        "data.train": corpus(tmp_path / "more.txt"), "output": str(tmp_path / "words"), "training.max_steps": 1,
        "report.write": False,
    }  # fmt: skip
    domain = train(Recipe.from_flags(flags), registry)
    assert (domain.strategy, domain.manifest.filling) == ("continual", Filling("sentinels", 16))
    backbone = Backbone.from_pretrained("village", registry=registry)
    assert backbone.load("words").notes == ()
    assert len(backbone.predict("the miller <extra_id_0> the grain.", "words")) == 5
    summaries = {
        **flags, "name": "short", "task": "summarization", "strategy": "intermediate", "from": "words@1",
        "generation.rows": 2, "training.max_target_length": 8, "output": str(tmp_path / "short"),
        "data.train": write_jsonl(tmp_path / "rows.jsonl", summary_rows(30)),
    }  # fmt: skip
    version = train(Recipe.from_flags(summaries), registry)
    backbone.load("short")
    assert version.parents == ("words@1",)
    assert set(backbone.predict("profit rose", "short")[0]) == {"summary_text"}


def test_names(make, registry):
    with pytest.raises(UnknownReferenceError, match=r"no base named 'village' .*`lorary pretrain` makes one"):
        registry.bases.get("village")
    recipe = make(**{"training.max_steps": 1})
    pretrain(recipe, registry)
    with pytest.raises(RegistryConflictError, match="has a base 'village' already"):
        pretrain(recipe, registry)
    with pytest.raises(UnknownReferenceError, match="did you mean village"):
        registry.bases.get("vilage")
    assert resolve_base(str(registry.bases.get("village").folder)).origin == "folder"


def test_verify_finds_a_changed_file(make, registry):
    base = pretrain(make(**{"training.max_steps": 1}), registry)
    (base.folder / "config.json").chmod(0o644)
    (base.folder / "config.json").write_text("{}")
    (base.folder / "tokenizer.json").unlink()
    messages = sorted(finding.message.partition(": ")[2] for finding in registry.verify())
    assert [re.sub(r" \(.*| from .*", "", message) for message in messages] == [
        "config.json: its content has changed",
        "tokenizer.json is missing",
    ]


@pytest.mark.parametrize(
    ("kind", "text"), [("wordpiece", "die muhle"), ("unigram", "Die Mühle"), ("bpe", "Die Mühle\nläuft 🌾")]
)
def test_tokenizers_give_back_what_they_were_given(make, kind, text):
    recipe = make(**{"tokenizer.kind": kind, "tokenizer.lowercase": kind == "wordpiece"})
    tokenizer = train_tokenizer(recipe, ["Die Mühle läuft. " * 3, "Der Müller mahlt das Korn."] * 4)
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) <= 320


def test_a_corpus_without_words_is_an_error(make):
    with pytest.raises(TrainingError, match="next to no words"):
        train_tokenizer(make(), ["", " "])


def test_a_corpus_is_read_in_its_encoding(make, tmp_path):
    recipe = make(**{"data.encoding": "latin-1", "data.validation_size": 0.0})
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_bytes("Die Mühle mahlt.\n\nDas Öl brennt.\n".encode("latin-1"))
    found = load_corpus(recipe, lambda line: None)
    assert [row.values["text"] for row in found.train] == ["Die Mühle mahlt.", "Das Öl brennt."]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "gpt"}, "architecture: expected one of llama, bert, t5, found 'gpt'"),
        ({"preset": "huge"}, "preset: expected one of tiny, small, base"),
        ({"model.heads": 3}, "model.hidden_size: expected a multiple of model.heads, which is 3, found 32"),
        ({"architecture": "llama", "tokenizer.kind": "wordpiece"}, "tokenizer.kind: llama gets bpe"),
        ({"architecture": "llama", "training.mlm_probability": 0.2}, "a causal model hides no tokens"),
        ({"architecture": "t5", "tokenizer.vocab_size": 320}, "t5's sentinels are 100 of them; expected at least 400"),
        ({"architecture": "t5", "tokenizer.kind": "wordpiece"}, "tokenizer.kind: t5 gets unigram or bpe"),
        (
            {"architecture": "t5", "training.whole_word_mask": True},
            "training.whole_word_mask: T5 hides spans of tokens",
        ),
        ({"training.mean_span": 2.0}, "training.mean_span: BERT hides single tokens or words"),
        ({"tokenizer.vocab_size": 10}, "tokenizer.vocab_size: expected a number of at least 300"),
        ({"data.train": "gone.txt"}, "data.train: no such file 'gone.txt'"),
        ({"data.encoding": "utf-16"}, "data.encoding: running text isn't read in utf-16"),
        ({"data.test_size": 0.1}, "data.test already names the held-out text"),
        ({"name": "My Base"}, "name: 'My Base' can't be a name"),
        ({"base": "org/base"}, "base: unknown key"),
    ],
)
def test_wrong_recipes_are_named(make, settings, message):
    with pytest.raises(RecipeError, match=message):
        make(**settings)


def test_an_ordinary_recipe_says_where_pretraining_is(make_recipe):
    with pytest.raises(RecipeError, match=r"strategy: .*`lorary pretrain`"):
        make_recipe("fill-mask", strategy="pretrain")


def test_too_little_text_leaves_nothing_behind(make, registry, tmp_path):
    recipe = make(**{"data.test": None})
    (tmp_path / "train.txt").write_text("one")
    with pytest.raises(DataError, match="too few to split"):
        pretrain(recipe, registry)
    (tmp_path / "train.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"train\.txt, line 1: not UTF-8"):
        pretrain(recipe, registry)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.txt", "train.txt"]


def test_the_command(make, registry, tmp_path, capsys):
    make()
    (tmp_path / "recipe.yaml").write_text(
        f"name: village\narchitecture: bert\ndata: {{train: {tmp_path}/train.txt}}\n"
        "tokenizer: {vocab_size: 320}\nmodel: {hidden_size: 32, layers: 1, heads: 2, context: 32}\n"
    )
    common = ["--registry", str(registry.path)]
    settings = ["--set", "training.max_steps=2", "--device", "cpu"]
    assert main(["pretrain", str(tmp_path / "recipe.yaml"), *settings, *common]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^village +bert ", out, re.MULTILINE)
    assert "lorary train --base village --task text-classification" in out
    assert main(["bases", *common]) == 0
    assert "village" in capsys.readouterr().out
    assert main(["bases", "village", "--json", *common]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "bert"
    assert main(["pretrain", str(tmp_path / "recipe.yaml"), *common]) == 1
    assert "has a base 'village' already" in capsys.readouterr().err
    assert main(["pretrain"]) == 2
    assert main(["bases", "--remove", "village", *common]) == 0
    assert main(["bases", *common]) == 0
    assert "No base was pretrained" in capsys.readouterr().out


def test_an_older_registry_gets_the_columns(registry, make):
    from sqlite_utils import Database

    from lorary.hub.tables import schema

    with closing(sqlite3.connect(registry.path)) as connection, pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        schema.migrate(Database(connection), str(registry.path))
        connection.commit()
    assert registry.bases.all() == []
    assert registry.verify() == []


def with_checkpoints(make, **settings):
    """A recipe whose tokenizer doesn't come out the same twice, with checkpoints inside its epochs."""
    return make(
        **{
            "data.validation_size": 0.2, "training.early_stopping": 2, "training.epochs": 2,
            "training.checkpoint_steps": 2, "tokenizer.kind": "unigram", "training.gradient_accumulation": 2,
            "model.layers": 1, **settings,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "moments"),
    [("bert", ("step 1", "measuring")), ("llama", ("step 5", "registering")), ("t5", ("step 3",))],
)
def test_killed_and_gone_on_with_it_is_the_base_of_an_unbroken_run(
    architecture, moments, live, make, registry, tmp_path
):
    recipe = with_checkpoints(
        make, architecture=architecture, **{"tokenizer.kind": "wordpiece" if architecture == "bert" else "bpe"}
    )
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    order = {"what": "pretrain", "recipe": str(tmp_path / "recipe.yaml"), "registry": str(registry.path)}
    for moment in moments:
        assert live(**order, at=moment) == [-signal.SIGKILL, ""], moment
        order["resume"] = True
    code, digest = live(**order)
    broken = registry.bases.get("village")
    whole = pretrain(recipe.model_copy(update={"output": str(tmp_path / "other")}), Registry(tmp_path / "other.db"))
    assert (code, digest) == (0, whole.digest)
    assert broken.digest == whole.digest
    assert broken.metrics == whole.metrics
    assert broken.provenance["steps"] == whole.provenance["steps"]
    assert broken.provenance["curve"] == whole.provenance["curve"]
    assert registry.verify() == []
    assert not list(tmp_path.glob("run*"))


def test_a_stopped_run_says_how_to_go_on_and_keeps_its_tokenizer(make, registry, tmp_path, capsys):
    recipe = with_checkpoints(make)
    with pytest.raises(InterruptedRunError) as caught:
        pretrain(recipe, registry, Signal("step 4"))
    command = f"lorary pretrain {tmp_path / 'run'} --resume --registry {registry.path}"
    assert f"step 4 of 28 is kept in {tmp_path / 'run'}.incomplete; go on with: {command}" in str(caught.value)
    assert not registry.path.exists()
    folder = tmp_path / "run.incomplete"
    tokens = (folder / "tokenizer" / "tokenizer.json").read_bytes()
    with pytest.raises(TrainingError, match="an unfinished run is in its place"):
        pretrain(recipe, registry)
    other = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": 1})})
    with pytest.raises(TrainingError, match=r"training.seed: 42 in the run, 1 now"):
        pretrain(other, registry, resume=True)
    assert main([*command.split()[1:], "--set", "training.seed=1"]) == 2
    assert main(["pretrain", str(folder), "--registry", str(registry.path)]) == 2
    assert main(["train", str(folder), "--resume", "--registry", str(registry.path)]) == 1
    assert (
        f"is a run of `lorary pretrain`; go on with: lorary pretrain {tmp_path / 'run'} --resume"
        in capsys.readouterr().err
    )
    assert main(command.split()[1:]) == 0
    assert (registry.bases.get("village").folder / "tokenizer.json").read_bytes() == tokens
    assert main(command.split()[1:]) == 1
    assert "no such unfinished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"parameters": "many"}, "parameters: expected a whole number from 1 on, found 'many'"),
        ({"metrics": {"test": [1]}}, "metrics: test: expected a table, found [1]"),
    ],
)
def test_what_is_kept_of_a_base_that_is_done_and_was_edited_is_one_error(changed, problem, make, registry, tmp_path):
    recipe = with_checkpoints(make, **{"training.max_steps": 2})
    with pytest.raises(InterruptedRunError):
        pretrain(recipe, registry, Signal("registering"))
    path = tmp_path / "run.incomplete" / "base.json"
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), **changed}))
    with pytest.raises(TrainingError) as caught:
        pretrain(recipe, registry, resume=True)
    assert str(caught.value).startswith(f"{path}: {problem}; put it back as it was, or remove it, and what it keeps")
    path.unlink()
    assert pretrain(recipe, registry, resume=True).name == "village"


def test_an_encoder_that_learns_nothing_for_a_while_is_waited_for(make):
    """Between token frequencies and the rest it may take several epochs."""
    patience = {kind: make(kind).training.early_stopping for kind in ("bert", "llama", "t5")}
    assert patience == {"bert": 10, "llama": 3, "t5": 3}
    assert make(**{"training.early_stopping": 2}).training.early_stopping == 2


def test_early_stopping_and_memory_work_as_in_every_run(make, registry):
    recipe = with_checkpoints(
        make, **{"training.epochs": 40, "training.learning_rate": 0.5, "training.early_stopping": 1}
    )
    reporter = Reporter()
    with memory_for(4):
        base = pretrain(recipe, registry, reporter)
    assert any(
        "going on with training.batch_size 4 and training.gradient_accumulation 4" in line for line in reporter.notices
    )
    assert base.provenance["steps"] < 40 * 6
    assert base.provenance["best_epoch"] * 6 < base.provenance["steps"]


def test_a_short_run_does_not_spend_its_only_step_on_warming_up(make, registry, tmp_path):
    first = pretrain(make(**{"training.max_steps": 1}), registry)
    slow = make(
        **{"training.max_steps": 1, "training.learning_rate": 1e-9, "name": "still", "output": str(tmp_path / "b")}
    )
    assert first.digest != pretrain(slow, registry).digest


def test_a_loss_that_is_no_number_names_its_rows(make, registry, monkeypatch):
    made = run.make_model

    def damaged(recipe, tokenizer):
        model = made(recipe, tokenizer)
        with torch.no_grad():
            model.get_input_embeddings().weight[tokenizer("miller", add_special_tokens=False)["input_ids"]] = math.nan
        return model

    monkeypatch.setattr(run, "make_model", damaged)
    with pytest.raises(TrainingError, match=r"loss became nan at step 1 of 104, .*train\.txt, line \d+.* lower"):
        pretrain(make(), registry)
    assert not registry.path.exists()
