"""`lorary run` on tiny models."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from characters import make_character_base
from hub_server import HubServer
from lorary.adapters import Backbone
from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.cli.main import main
from lorary.hub.manifest import BaseIdentity, Manifest, Prompt
from tiny import make_adapter, make_base

TEXTS = ["profit rose the bank", "asthma and cancer"]
AGENT = "{% for t in tools or [] %}{{ t.name }} {% endfor %}{% if loud %}the {% endif %}{{ messages[0].content }}"
CASES = {
    "tone": ("bert", "text-classification", {"labels": ("down", "flat", "up")}),
    "entities": ("bert", "token-classification", {"labels": ("O", "B-Disease", "I-Disease")}),
    "story": ("llama", "text-generation", {"prompt": Prompt("instruction", "the {prompt}")}),
    "agent": ("llama", "text-generation", {"prompt": Prompt("chat", chat_template=AGENT)}),
    "summary": ("t5", "summarization", {}),
    "vectors": ("bert", "feature-extraction", {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each of CASES, and one for each family of bases."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("run")
    folders = {}
    for name, (family, task, fields) in CASES.items():
        if family not in folders:
            folders[family] = make_base(family, place / family)
        base = folders[family]
        folders[name] = make_adapter(base, place / name, task="seq2seq" if family == "t5" else task)
        Manifest(task=task, base=Backbone.from_pretrained(str(base)).identity, **fields).write(folders[name])
    return folders


@pytest.fixture
def run(capsys, monkeypatch):
    """Run `lorary run` in this process; expects the exit code and gives back its stdout, or stderr when it failed."""

    def run(*words, code=0, stdin=None):
        monkeypatch.setattr(sys, "stdin", stdin if stdin is not None else io.StringIO(""))
        capsys.readouterr()  # what making the test's own models printed
        found = main(["run", *map(str, words)])
        captured = capsys.readouterr()
        assert found == code, captured
        run.stderr = captured.err
        if code == 0:
            return captured.out
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("lorary: error: ")
        return line

    return run


def answers_of(folder, base, texts, **params):
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(folder, "it")
    return backbone.predict(texts, "it", **params)


def test_tools_of_a_chat(run, folders, tmp_path):
    file = tmp_path / "tools.json"
    file.write_text('[{"name": "cancer"}, {"name": "bank"}]')
    told = run(folders["agent"], "profit", "--tools", file, "--max-new-tokens", 5)
    backbone = Backbone.from_pretrained(str(folders["llama"]))
    backbone.load(folders["agent"], "it")
    expected = backbone.generate("cancer bank profit", "it", max_new_tokens=5)
    assert told.splitlines() == ["> profit", f"[with adapter] {expected.strip()}".rstrip()]
    assert told != run(folders["agent"], "profit", "--max-new-tokens", 5)
    for text, message in (("[{}]", "tool 1: has no name"), ("[", "expected a readable JSON file")):
        file.write_text(text)
        assert message in run(folders["agent"], "profit", "--tools", file, code=2)
    assert "--tools is for adapters that were trained on chats" in run(folders["story"], "a", "--tools", file, code=2)


def test_what_a_chat_template_is_told(run, folders):
    backbone = Backbone.from_pretrained(str(folders["llama"]))
    backbone.load(folders["agent"], "it")
    for words, text in (
        (("--template", "loud=true"), "the profit"),
        (("--template", "loud=true", "--template", " loud =no"), "profit"),  # YAML's, as in a recipe
        (("--template", 'loud="no"'), "the profit"),
        (("--template", "loud={a: [1]}"), "the profit"),
        ((), "profit"),
    ):
        expected = backbone.generate(text, "it", max_new_tokens=5)
        told = run(folders["agent"], "profit", *words, "--max-new-tokens", 5)
        assert told.splitlines() == ["> profit", f"[with adapter] {expected.strip()}".rstrip()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loud"], "--template 'loud': expected KEY=VALUE, such as enable_thinking=false"),
        (["=1"], "--template '=1': expected KEY=VALUE, such as enable_thinking=false"),
        (["loud=[1"], "--template 'loud=[1': the value isn't YAML (not valid YAML: expected ',' or ']'"),
        (
            ["loud=2026-13-45"],
            "--template 'loud=2026-13-45': the value isn't YAML (not valid YAML: '2026-13-45' can't be read",
        ),
        (["loud=" + "[" * 3000], "the value isn't YAML (nested too deeply)"),
        (["loud=2026-05-01"], "--template: loud: expected a value that JSON has (a text, such as a date in quotes"),
        (["loud=1", "a-b=2"], "--template: expected names of variables, such as enable_thinking, found 'a-b'"),
        (["tools=[]"], "--template: 'tools' isn't the template's to be told; leave it out"),
    ],
)
def test_what_a_chat_template_cant_be_told_is_one_error(words, message, run, folders):
    told = [word for setting in words for word in ("--template", setting)]
    assert message in run(folders["agent"], "profit", *told, code=2)


@pytest.mark.parametrize("whose", ["manifest", "adapter", "base"])
def test_what_a_chat_template_does_not_know_is_told_before_the_base_is_loaded(
    whose, run, folders, tmp_path, monkeypatch
):
    base, folder = (shutil.copytree(folders[name], tmp_path / name) for name in ("llama", "agent"))
    if whose != "manifest":
        # The manifest's is what was trained with only where the tokenizer's is another.
        prompt = Prompt("chat")
        replace(read_checkpoint(folder).manifest, prompt=prompt).write(folder)
        ({"adapter": folder, "base": base}[whose] / "chat_template.jinja").write_text(AGENT)
    expected = run(folders["agent"], "profit", "--template", "loud=1", "--max-new-tokens", 5)
    assert run(folder, "profit", "--base", base, "--template", "loud=1", "--max-new-tokens", 5) == expected

    def load(*_, **__):
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(Backbone, "from_pretrained", load)
    line = run(folder, "profit", "--base", base, "--template", "loud=1", "--template", "lowd=1", code=2)
    assert line.endswith("--template: the chat template knows no 'lowd'; near it: loud")


@pytest.mark.parametrize(("name", "text"), [("story", "a"), ("tone", "a"), ("summary", "a")])
def test_only_adapters_of_chats_have_a_template_to_tell(name, text, run, folders):
    line = run(folders[name], text, "--template", "loud=true", code=2)
    assert "--template is for adapters that were trained on chats; this one wasn't, or doesn't say" in line


def test_texts_of_a_structure(run, folders, tmp_path):
    base = make_character_base(tmp_path / "base", positions=512)
    folder = make_adapter(base, tmp_path / "writer", task="text-generation", r=2)
    Manifest(task="text-generation", base=Backbone.from_pretrained(str(base)).identity).write(folder)
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}')
    told = json.loads(run(folder, "who?", "--schema", file, "--max-new-tokens", 300, "--bare", "--json"))
    assert {type(json.loads(told["rows"][0][key])["sure"]) for key in ("output", "bare")} == {bool}
    texts = [row["output"] for row in json.loads(run(folder, "who?", "so?", "--regex", "yes|no", "--json"))["rows"]]
    assert set(texts) <= {"yes", "no"}
    assert "regex: " in run(folder, "who?", "--regex", "(", code=2)
    assert "leave one of them out" in run(folder, "who?", "--regex", "a", "--schema", file, code=2)
    assert "--regex is for generated texts" in run(folders["tone"], "profit", "--regex", "a", code=2)
    for text, message in (("[", "expected a readable JSON file"), ("[]", 'expected a JSON schema, such as {"type"')):
        file.write_text(text)
        assert message in run(folder, "who?", "--schema", file, code=2)


def test_the_bare_base_has_no_template_to_tell(run, folders, tmp_path):
    file = tmp_path / "tools.json"
    file.write_text('[{"name": "cancer"}]')
    for words in (["--tools", file], ["--template", "loud=true"]):
        line = run(folders["agent"], "profit", *words, "--bare", code=2)
        assert f"--bare gives the base the text as it stands, without a template to tell; leave {words[0]} out" in line


def test_text_classification(run, folders):
    heading, *lines = run(folders["tone"], *TEXTS).splitlines()
    assert heading.split() == ["label", "score", "text"]
    expected = answers_of(folders["tone"], folders["bert"], TEXTS)
    assert [line.split(maxsplit=2) for line in lines] == [
        [answer["label"], f"{answer['score']:.3f}", text] for answer, text in zip(expected, TEXTS, strict=True)
    ]
    assert run.stderr == ""


def test_token_classification(run, folders):
    lines = run(folders["entities"], *TEXTS).splitlines()
    assert [line for line in lines if not line.startswith(" ")] == TEXTS
    expected = answers_of(folders["entities"], folders["bert"], TEXTS, aggregation_strategy="first")
    assert sum(map(len, expected)) > 0
    found = [line.split() for line in lines if line.startswith(" ") and "nothing found" not in line]
    assert found == [
        [e["entity_group"], f"{e['score']:.3f}", *text[e["start"] : e["end"]].split()]
        for entities, text in zip(expected, TEXTS, strict=True)
        for e in entities
    ]


def test_a_text_in_which_nothing_is_found(run, folders):
    assert run(folders["entities"], "").splitlines() == ["", "    nothing found"]


@pytest.mark.parametrize("name", ["story", "summary"])
def test_generation_with_and_without_the_adapter(run, folders, name):
    base = folders[CASES[name][0]]
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(folders[name], "it")
    tuned = backbone.generate(TEXTS, "it", max_new_tokens=5, do_sample=False)
    plain = backbone.generate(TEXTS, None, max_new_tokens=5, do_sample=False)
    assert tuned != plain
    lines = []
    for text, one, other in zip(TEXTS, tuned, plain, strict=True):
        lines += [f"> {text}", f"[with adapter] {one}", f"[bare backbone] {other}"]
    assert run(folders[name], *TEXTS, "--bare", "--max-new-tokens", 5).splitlines() == lines
    without = [line for line in lines if not line.startswith("[bare")]
    assert run(folders[name], *TEXTS, "--max-new-tokens", 5).splitlines() == without


def test_many_prompts_give_what_each_gives_alone(run, folders):
    words = ["profit", "sales rose", "the bank fell", "asthma and cancer"] * 5
    rows = json.loads(run(folders["story"], *words, "--json", "--max-new-tokens", 3))["rows"]
    assert [row["input"] for row in rows] == words
    alone = {word: json.loads(run(folders["story"], word, "--json", "--max-new-tokens", 3)) for word in words[:4]}
    assert [row["output"] for row in rows] == [alone[word]["rows"][0]["output"] for word in words]


@pytest.mark.parametrize("name", CASES)
def test_json(run, folders, name):
    found = json.loads(run(folders[name], *TEXTS, "--json", *(["--bare"] if name == "story" else [])))
    assert found["adapter"] == str(folders[name])
    assert found["task"] == CASES[name][1]
    assert [row["input"] for row in found["rows"]] == TEXTS
    assert [set(row) for row in found["rows"]] == [{"input", "output"} | ({"bare"} if name == "story" else set())] * 2
    first = found["rows"][0]["output"]
    if name == "tone":
        assert first["label"] in ("down", "flat", "up")
        assert type(first["score"]) is float
    elif name == "entities":
        assert {"entity_group", "score", "start", "end"} <= set(first[0])
    elif name == "vectors":
        assert len(first[0][0]) == 32
    else:
        assert isinstance(first, str)


def test_lines_on_stdin(run, folders):
    stdin = io.StringIO("\ufeffprofit rose the bank\r\n\n   \n  asthma and cancer")
    assert run(folders["tone"], stdin=stdin) == run(folders["tone"], *TEXTS)


def test_odd_texts(run, folders):
    texts = ["", "profit \U0001f600 rose", "sales\nfell\x1b[2J", "loss " * 5000]
    *lines, last = run(folders["tone"], *texts).splitlines()[1:]
    assert [line.split(maxsplit=2)[2:] for line in lines] == [[], [texts[1]], ["sales\\nfell\\x1b[2J"]]
    assert last.endswith(texts[3].strip())
    assert run(folders["tone"], "--", "-5% profit").splitlines()[1].endswith("  -5% profit")


def test_no_text(run, folders):
    assert "found nothing" in run(folders["tone"], code=2, stdin=io.StringIO("\n\n"))
    _, terminal = os.openpty()
    with open(terminal, encoding="utf-8") as stdin:  # noqa: PTH123 - a descriptor
        assert 'lorary run REF "a text"' in run(folders["tone"], code=2, stdin=stdin)


def test_bytes_that_are_not_text(run, folders):
    stdin = io.TextIOWrapper(io.BytesIO(b"profit\xff\n"), encoding="utf-8")
    assert "expected text in utf-8" in run(folders["tone"], code=2, stdin=stdin)
    assert "text 2: not valid" in run(folders["tone"], "profit", "\udcff rose", code=2)


def test_the_registry(run, folders, registry):
    registry.add(folders["tone"], name="finance-tone", domain="finance")
    registry.alias("finance-tone", "prod", 1)
    shown = run(folders["tone"], *TEXTS)
    for reference in ("finance-tone", "finance-tone@1", "finance-tone@prod"):
        assert run(reference, *TEXTS, "--registry", registry.path) == shown
    found = json.loads(run("finance-tone@prod", "profit", "--json", "--registry", registry.path))
    assert found["adapter"] == "finance-tone@1"
    line = run("finance-tones", "profit", "--registry", registry.path, code=1)
    assert "no adapter named 'finance-tones'" in line
    assert "did you mean finance-tone?" in line


def test_the_catalogues_word_for_a_foreign_adapter(run, folders, registry, tmp_path):
    vectors = make_adapter(folders["llama"], tmp_path / "vectors", task="text-generation")
    registry.add(vectors, name="vectors", domain="finance", task="feature-extraction")
    words = ("profit", "--base", folders["llama"], "--json")
    found = json.loads(run("vectors", *words, "--registry", registry.path))
    assert found["task"] == "feature-extraction"
    assert len(found["rows"][0]["output"][0][0]) == 32
    assert "is for feature-extraction" in run("vectors", "a", "--bare", "--registry", registry.path, code=2)
    assert json.loads(run(vectors, *words))["task"] == "text-generation"  # a folder is in no catalogue


def test_another_place_of_the_base(run, folders, tmp_path):
    folder = make_adapter(folders["bert"], tmp_path / "moved", task="text-classification")
    identity = Backbone.from_pretrained(str(folders["bert"])).identity
    gone = BaseIdentity(str(tmp_path / "gone"), fingerprint=identity.fingerprint)
    Manifest(task="text-classification", base=gone).write(folder)
    line = run(folder, "profit", code=1)
    assert str(tmp_path / "gone") in line
    assert "--base" in line
    assert run(folder, "profit", "--base", folders["bert"]).splitlines()[0].startswith("label")
    assert "--base" not in run(folder, "profit", "--base", tmp_path / "nowhere", code=1)
    other = make_base("bert", tmp_path / "other", seed=9)
    assert "trained on" in run(folder, "profit", "--base", other, code=1)


def test_an_adapter_that_names_no_base(run, folders, tmp_path):
    folder = make_adapter(folders["bert"], tmp_path / "foreign", task="text-classification")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    assert "--base" in run(folder, "profit", code=2)
    out = run(folder, "profit", "--base", folders["bert"])
    assert "LABEL_" in out
    assert "note" not in out
    assert re.fullmatch(r"note: .*base unverified.*\n", run.stderr)


def test_notes_can_not_play_tricks_on_the_terminal(run, folders, tmp_path):
    folder = make_adapter(folders["bert"], tmp_path / "a", task="text-classification")
    identity = Backbone.from_pretrained(str(folders["bert"])).identity
    Manifest(task="text-classification", base=BaseIdentity("org/\x1b[2Jx", fingerprint=identity.fingerprint)).write(
        folder
    )
    run(folder, "profit", "--base", folders["bert"])
    assert "org/\\x1b[2Jx" in run.stderr


def test_the_adapter_is_judged_before_its_base_is_loaded(run, folders, tmp_path):
    nowhere = ("--base", tmp_path / "nowhere")
    assert "there is no registry" in run("finance-tone", "profit", *nowhere, code=1)
    assert "no such folder" in run("./nothing-here", "profit", *nowhere, code=1)
    folder = make_adapter(folders["bert"], tmp_path / "broken", task="text-classification")
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert "adapter_model.safetensors" in run(folder, "profit", *nowhere, code=1)
    weights.write_bytes(whole)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_qalora": True}))
    assert "use_qalora" in run(folder, "profit", *nowhere, code=1)


def test_options_that_do_not_fit_the_task(run, folders):
    assert "--bare" in run(folders["tone"], "profit", "--bare", code=2)
    assert "--json" in run(folders["vectors"], "profit", code=2)
    assert "nf5" in run(folders["tone"], "profit", "--quantization", "nf5", code=2)


def test_quantized_with_a_note(run, folders):
    run(folders["tone"], "profit", "--quantization", "int8")
    assert run.stderr == "note: trained on unquantized weights, served on int8 ones\n"


def test_from_the_hub_in_a_process_of_its_own(run, folders, tmp_path):
    with HubServer() as hub:
        hub.commit_folder("user/tone", folders["tone"], branch="v1")
        finished = subprocess.run(
            [sys.executable, "-m", "lorary.hub.cli", "run", "user/tone@v1", *TEXTS],
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (finished.returncode, finished.stdout) == (0, run(folders["tone"], *TEXTS)), finished.stderr
    assert finished.stderr == ""
