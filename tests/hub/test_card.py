"""The model card: what the Hub reads of it, what a person reads, and that nothing of a stranger's acts in it."""

import re
import sqlite3

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from checkpoints import BASE_FINGERPRINT, make_manifest
from lorary.hub.card import card_tags, make_card
from lorary.hub.cli.main import main
from lorary.hub.manifest import BaseIdentity

PROVENANCE = {
    "data": {
        "train": {"name": "tone.jsonl", "rows": 240, "sha256": "a" * 64, "revision": None},
        "test": {"name": "org/headlines", "rows": 80, "sha256": None, "revision": "b" * 40},
        "rows": {"train": 216, "validation": 24, "test": 80},
    },
    "recipe": {
        "strategy": "fine-tune",
        "lora": {"rank": 2, "alpha": 4.0},
        "training": {"learning_rate": 0.002, "epochs": 8.0},
    },
    "base": {"files": {"model.safetensors": "c" * 64}},
    "licenses": {"base": "cc-by-4.0", "data": "CC-BY-4.0"},
    "languages": ["en"],
    "seed": 7,
    "steps": 100,
    "seconds": 12.3,
    "peak_memory_bytes": 2_000_000_000,
    "estimate": {"peak_memory_bytes": 1_900_000_000},
    "environment": {"device": "cuda (NVIDIA H100)", "python": "3.12.1", "packages": {"peft": "0.21.2"}},
    "git": {"commit": "d" * 40, "dirty": True},
    "notices": ["3 rows were cut"],
}
METRICS = {
    "test": {"accuracy": 0.9, "loss": 0.3},
    "untrained": {"accuracy": 0.5, "loss": 0.7},
    "majority": {"accuracy": 0.95},
}


@pytest.fixture
def make(registry, add):
    """A version's card, and the version."""

    def make(repo=None, metrics=None, provenance=PROVENANCE, **changes):
        manifest = make_manifest(provenance=provenance, **changes)
        version = add(manifest=manifest, metrics=metrics if metrics is not None else METRICS, tags=["headlines"])
        return make_card(version, registry.checkpoint(version), repo=repo), version

    return make


def test_the_hub_s_own_reader_gets_every_field(make):
    text, _ = make(repo="me/finance-tone")
    data = ModelCard(text).data
    assert data.base_model == "org/tiny"
    assert data.base_model_relation == "adapter"
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-classification"
    assert data.license == "cc-by-4.0"
    assert data.language == ["en"]
    assert data.datasets == ["org/headlines"]
    assert data.tags == ["lorary", "domain:finance", "task:text-classification", "finance", "lora", "headlines"]
    results = {result.metric_type: result for result in data.eval_results}
    assert results["accuracy"].metric_value == 0.9
    assert results["accuracy"].dataset_type == "org/headlines"
    assert results["accuracy"].dataset_revision == "b" * 40
    assert results["accuracy"].dataset_split == "test"


@pytest.mark.parametrize("word", ["2e-4", "1e5", "1.5e3", "0o17", "0x10", "no", "2024-01-01", "null", "1_0", "12"])
def test_a_word_that_yaml_has_another_meaning_for_is_quoted(add, registry, word):
    # The Hub reads YAML 1.2, in which 2e-4 is a number; PyYAML reads 1.1, in which it is a word, but no isn't.
    version = add(metrics={"test": {word: 0.5}})
    front = text_of((make_card(version, registry.checkpoint(version)), version)).split("---\n")[1]
    assert yaml.safe_load(front)["metrics"] == [word]
    assert {line.strip() for line in front.splitlines() if word in line} == {
        f"- '{word}'", f"- type: '{word}'", f"name: '{word}'",
    }  # fmt: skip


def test_the_front_matter_survives_the_hub_s_own_round_trip(make):
    text, _ = make()
    card = ModelCard(text)
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()
    assert again.text == card.text


def test_tags_are_the_card_s(make):
    text, version = make()
    assert list(card_tags(version)) == ModelCard(text).data.tags


def test_a_person_reads_how_it_came_to_be(make):
    text, version = make()
    for told in (
        "216 for train", "a" * 64, "revision " + "b" * 40, "| learning rate | 0.002 |", "| seed | 7 |", "NVIDIA H100",
        "peft 0.21.2", "2 GB (1.9 GB predicted)", f"git commit {'d' * 40}, with changes on top", version.digest,
        BASE_FINGERPRINT, "c" * 64, "3 rows were cut", "| accuracy | 0.9 | 0.5 | 0.95 |", "only 80 held-out rows",
        "On accuracy it is no better than majority class", "Languages of the data: en",
        "License of the base: cc-by-4.0; license of the data: cc-by-4.0",
    ):  # fmt: skip
        assert told in text, told
    assert "no better than untrained" not in text


def test_code_loads_from_the_repository_or_from_the_exported_folder(make):
    assert text_of(make(repo="me/tone")).count('"me/tone"') == 2
    text = text_of(make())
    assert text.count('"./finance-tone"') == 2
    assert "lorary export finance-tone@1 ./finance-tone" in text


def text_of(made):
    return made[0]


@pytest.mark.parametrize(
    ("base", "data", "expected"),
    [
        ("apache-2.0", None, {"license": "apache-2.0"}),
        (None, "MIT", {"license": "mit"}),
        ("apache-2.0", "Apache 2.0", {"license": "apache-2.0"}),
        ("llama3", "cc-by-4.0", {"license": "other", "license_name": "base-llama3-data-cc-by-4.0"}),
        ("our own terms", None, {"license": "other", "license_name": "base-our-own-terms"}),
        (None, None, {}),
    ],
)
def test_license(make, base, data, expected):
    provenance = {"licenses": {"base": base, "data": data}}
    found = ModelCard(text_of(make(provenance=provenance))).data.to_dict()
    assert {key: found[key] for key in ("license", "license_name") if key in found} == expected


@pytest.mark.parametrize("base", ["tiny", "../models/llama", "C:\\models\\llama", "a/b/c"])
def test_a_base_that_is_not_on_the_hub_is_no_link(make, base):
    text, _ = make(base=BaseIdentity(base, fingerprint=BASE_FINGERPRINT))
    data = ModelCard(text).data.to_dict()
    assert "base_model" not in data
    assert "base_model_relation" not in data
    assert "](https" not in text


@pytest.mark.parametrize(("name", "listed"), [("org/rows", True), ("data/rows.jsonl", False), ("./data/rows", False)])
def test_only_data_sets_of_the_hub_are_listed_as_such(make, name, listed):
    told = {"train": {"name": name, "rows": 3, "sha256": None, "revision": None}}
    assert ModelCard(text_of(make(provenance={"data": told}))).data.datasets == ([name] if listed else None)


def test_an_adapter_without_a_manifest_gets_an_honest_card(registry, add):
    version = add(manifest=False, domain="finance")
    text = make_card(version, registry.checkpoint(version), repo="me/foreign")
    data = ModelCard(text).data
    assert data.base_model == "org/tiny"
    assert data.eval_results is None
    assert "It hasn't been measured." in text
    assert "It was made outside lorary" in text
    assert "unverified" in text


HOSTILE = (
    '"><script>alert(1)</script>', "\x1b[2J\x07", "[click](javascript:alert(1))", "![](http://evil.example/x.png)",
    "a\n---\nlicense: mit\n", "``` \n# head", "| a | b |", "\u202egnp.exe", "http://evil.example", "www.evil.example",
    "@everyone", "$$\\href{javascript:alert(1)}{x}$$", "{{ 7 * 7 }}", "<!-- ", "&lt;b&gt;", "*x* _y_ ~z~", "\\",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_a_stranger_acts(make, text):
    part = {"name": text, "rows": 3, "sha256": None, "revision": text, "files": {text: text}}
    provenance = {
        "data": {"train": part, "test": part, text: part, "rows": {text: 3}},
        "recipe": {
            "lora": {"targets": [text], "rank": text},
            "training": {"scheduler": {text: text}},
        },
        "base": {"files": {text: text}},
        "licenses": {"base": text, "data": text},
        "languages": text,
        "environment": {"device": text, "python": text, "packages": {text: text}},
        "git": {"commit": text},
        "notices": [text],
    }
    card, _ = make(
        provenance=provenance,
        metrics={"test": {text: 0.5, "f1": 0.1}, text: {"f1": 0.9}},
        labels=(text, "positive"),
        base=BaseIdentity(text, fingerprint=BASE_FINGERPRINT),
    )
    assert not any(sign for sign in card if not sign.isprintable() and sign != "\n")
    data = ModelCard(card).data.to_dict()
    assert set(data) <= {
        "library_name", "license", "license_name", "license_link", "metrics", "model-index", "pipeline_tag", "tags",
    }  # fmt: skip
    body = ModelCard(card).text
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(body)
    allowed = {"h1", "h2", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}
    assert set(re.findall(r"</?([a-z0-9]+)", rendered)) <= allowed
    prose = re.sub(r"```python.*?```|`[^`]*`", "", body, flags=re.DOTALL)
    assert not re.search(r"://|www\.|(?<!\\)@|(?<!\\)\$", prose)  # what GitHub's and the Hub's flavours act upon


def test_show_prints_it(make, registry, capsys):
    text, _ = make()
    assert main(["show", "finance-tone", "--card", "--registry", str(registry.path)]) == 0
    assert capsys.readouterr().out == text


def test_damaged_provenance_is_no_error(make):
    for told in ([], "x", 3, None, {"a": 1}):
        provenance = dict.fromkeys(PROVENANCE, told)
        assert yaml.safe_load(text_of(make(provenance=provenance)).split("---\n")[1])["library_name"] == "peft"


@pytest.mark.parametrize(
    ("domain", "word"),
    [("finance", "Profit"), ("clinical-notes", "metformin"), ("legal-cases", "tenant"), ("sports", "committee")],
)
def test_the_samples_text_is_of_the_domain(make, domain, word):
    text = text_of(make(domain=domain))
    lorary_code, peft_code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert word in lorary_code
    assert word in peft_code


@pytest.mark.parametrize("task", ["text-classification", "summarization"])
def test_the_samples_text_of_a_foreign_adapter_is_of_its_domain_here(registry, add, task):
    kind = "SEQ_CLS" if task == "text-classification" else "SEQ_2_SEQ_LM"
    version = add(manifest=False, config={"task_type": kind}, domain="legal-cases", task=task)
    text = make_card(version, registry.checkpoint(version))
    lorary_code, peft_code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "The tenant shall pay" in lorary_code
    assert "The tenant shall pay" in peft_code


def test_an_imported_adapter_isn_t_compared_with_its_own_validation_rows(make):
    metrics = {"validation": {"accuracy": 0.9}, "test": {"accuracy": 0.85}, "untrained": {"accuracy": 0.9}}
    text, _ = make(metrics=metrics)
    assert "no better than untrained" in text
    assert "no better than on validation rows" not in text


def test_a_task_that_somebody_wrote_into_the_row_is_named(add, registry, capsys):
    add()
    with sqlite3.connect(registry.path) as db:
        db.execute("UPDATE adapters SET task = 'ner'")
    for words in (["show", "finance-tone", "--card"], ["export", "finance-tone", "out"]):
        assert main([*words, "--registry", str(registry.path)]) == 1
        assert "finance-tone@1: the registry has 'ner' for its task; expected" in capsys.readouterr().err
