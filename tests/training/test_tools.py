"""Tools that a model may call: prompts are TRL's own, calls are learned and their results are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trl_rows import OFF, table, trl_template

from lorary.adapters import Backbone
from lorary.hub import Registry
from lorary.hub.errors import DataError, RecipeError, UsageError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.fitting.losses import IGNORED
from lorary.training.tasks import make_task
from samples import bpe_tokenizer, write_jsonl


def tool(name, **arguments):
    properties = {key: {"type": kind, "description": f"the {key}"} for key, kind in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def call(name, **arguments):
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


RATE, SUM = tool("rate", bank="string"), tool("sum", a="integer", b="integer")
ASKED = {"role": "user", "content": "the rate of a bank?"}
CALL = call("rate", bank="strong")
RESULT = {"role": "tool", "name": "rate", "content": "fell"}
SAID = {"role": "assistant", "content": "it fell today"}
ROWS = [
    {"prompt": [ASKED], "completion": [CALL], "tools": [RATE, SUM]},
    {"prompt": [{"role": "system", "content": "be brief"}, ASKED, CALL, RESULT], "completion": [SAID], "tools": [RATE]},
    {"prompt": [{"role": "user", "content": "sum?"}], "completion": [call("sum", a=1, b=2)], "tools": [SUM]},
    {"prompt": [ASKED], "completion": [SAID], "tools": None},
]
CHAT = {"messages": [ASKED, CALL, RESULT, SAID], "tools": [RATE, SUM]}
# As Hermes' and Qwen's write them, short enough for a tiny model's positions.
HERMES = (
    "{% for t in tools or [] %}"
    "<tool>{{ t.function.name }}:{{ t.function.parameters.properties | join(',') }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}{% endfor %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def encode(make_recipe, tmp_path):
    """``encode(rows, template)``: the features, the task's rows and what the user is told."""

    def encode(rows, template, columns=None, **settings):
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        columns = columns or {role: role for role in rows[0]}
        given = {"data.train": path, "data.test": path + ".json", "data.columns": columns}
        Path(path + ".json").write_text(json.dumps(rows))
        recipe = make_recipe("text-generation", **given, **{"prompt.chat_template": template}, **settings)
        notes: list[str] = []
        tokenizer = bpe_tokenizer()
        return make_task(recipe, None).encode(load_data(recipe).test, tokenizer, 4096, notes.append), notes

    return encode


@pytest.mark.parametrize("as_text", [False, True], ids=["lists", "json"])
@pytest.mark.parametrize("family", ["qwen3", "qwen2_5", "llama3_1", "llama3_2", "glm4moe"])
def test_rows_are_those_of_trls_own_trainer(family, as_text, encode, bases, tmp_path):
    from trl import SFTConfig, SFTTrainer

    rows = [{**row, "tools": json.dumps(row["tools"])} for row in ROWS] if as_text else ROWS
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = trl_template(family)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = SFTTrainer(
        bases("llama"), args=SFTConfig(str(tmp_path / "trl"), **OFF), train_dataset=table(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    features = encode(rows, tokenizer.chat_template)[0].features
    for own, theirs in zip(features, trainer.train_dataset, strict=True):
        assert own["input_ids"] == theirs["input_ids"]
        assert own["labels"] == theirs["labels"]


@pytest.mark.parametrize("family", ["qwen3", "llama3_2"])
def test_pairs_are_those_of_trls_own_trainer(family, encode, bases, tmp_path):
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": row["prompt"], "chosen": row["completion"], "tools": row["tools"]} for row in ROWS]
    rows = [{**row, "rejected": [{"role": "assistant", "content": "weak"}]} for row in rows]
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = trl_template(family)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = DPOTrainer(
        bases("llama"), args=DPOConfig(str(tmp_path / "trl"), **OFF), train_dataset=table(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    features = encode(rows, tokenizer.chat_template)[0].features
    for own, theirs in zip(features, trainer.train_dataset, strict=True):
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert own[name] == theirs[name]


def test_calls_are_learned_and_results_are_not(encode):
    encoded, notes = encode([CHAT], HERMES)
    (feature,) = encoded.features
    tokenizer = bpe_tokenizer()
    learned = [label for label in feature["labels"] if label != IGNORED]
    spoken = '<call>{"name": "rate", "arguments": {"bank": "strong"}}</s>'
    assert tokenizer.decode(learned) == f"{spoken}it fell today</s>"
    assert tokenizer.decode(feature["input_ids"]).startswith("<tool>rate:bank<tool>sum:a,b<user>")
    assert notes == []


@pytest.mark.parametrize(
    "rows", [[CHAT, {**CHAT, "tools": []}], [{"prompt": "a?", "chosen": "a", "rejected": "the"}] * 2]
)
def test_a_template_that_leaves_tools_out_is_told(rows, encode):
    rows = [{**rows[0], "tools": [tool("a")]}, rows[1]]
    _, notes = encode(rows, HERMES.partition("{% endfor %}")[2], columns={role: role for role in rows[0]})
    assert len(notes) == 1
    assert notes[0].startswith("1 of 2 chats have tools that the chat template doesn't write, so the model isn't told")
    assert "row 1)" in notes[0]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ('[{"name": ', "expected a list of JSON schemas of functions, or one as JSON text, found '[{\"name\": '"),
        ('{"name": "a"}', "expected a list of JSON schemas of functions, or one as JSON text, found {'name': 'a'}"),
        (RATE, "expected a list of JSON schemas of functions, or one as JSON text, found {'type': 'function'"),
        ([RATE, "rate"], "tool 2: expected a JSON schema of a function, found 'rate'"),
        ([{"type": "function", "function": {"parameters": {}}}], "tool 1: has no name (tool['function']['name']), fo"),
        ([{"type": "function", "function": "rate"}], "tool 1: has no name"),
    ],
)
def test_bad_tools_are_bad_rows(tools, message, encode):
    with pytest.raises(DataError) as caught:
        encode([CHAT, {**CHAT, "tools": tools}], HERMES)
    problem, _ = caught.value.problems  # the held-out rows are the same
    place, _, found = problem.partition(", tools: ")
    assert place.endswith("rows.jsonl, row 2")
    assert found.startswith(message)


@pytest.mark.parametrize("none", [None, "", "[]", "null", []])
def test_rows_without_tools_are_chats_like_others(none, encode):
    encoded, notes = encode([{**CHAT, "tools": none}, {"messages": CHAT["messages"]}, CHAT], HERMES)
    first, second, third = (feature["input_ids"] for feature in encoded.features)
    assert first == second != third
    assert notes == []


def test_settings_and_columns_of_tools_are_checked(encode, make_recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"prompt\.format: only a chat template is told of tools"):
        encode(ROWS, None, **{"prompt.format": "instruction"})
    with pytest.raises(RecipeError, match=r"takes .*, and .* and tools beside any but text, found text, tools"):
        make_recipe("text-generation", **{"data.columns": {"text": "text", "tools": "tools"}})
    path = write_jsonl(tmp_path / "unnamed.jsonl", [CHAT] * 4)
    notes: list[str] = []
    load_data(
        make_recipe(
            "text-generation", **{"data.train": path, "data.columns": {"messages": "messages"}, "data.test": None}
        ),
        notes.append,
    )
    assert "which isn't read; set data.columns.tools to tools" in notes[0]
    with pytest.raises(DataError, match=r"set data\.columns to {messages: messages, tools: tools}"):
        load_data(make_recipe("text-generation", **{"data.train": path}))


@pytest.fixture(scope="module")
def trained(recipe_in, tmp_path_factory):
    """An adapter that was trained on a call, measured by the texts that it writes; its version and its backbone."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [{"prompt": [ASKED], "completion": [call("a", n=1)], "tools": [tool("a", n="integer")]}] * 8
    recipe = recipe_in(
        folder, "text-generation",
        **{
            "data.train": write_jsonl(folder / "rows.jsonl", rows), "data.test": None, "training.max_steps": 2,
            "data.columns": {role: role for role in rows[0]}, "prompt.chat_template": HERMES, "generation.rows": 1,
            "generation.max_new_tokens": 4, "training.max_length": 256,
        },
    )  # fmt: skip
    registry = Registry(folder / "registry.db")
    version = train(recipe, registry)
    backbone = Backbone.from_pretrained(recipe.base, registry=registry, device="cpu")
    backbone.load("tiny")
    return version, backbone


def test_texts_are_generated_with_the_rows_tools(trained, encode):
    """And a call is right where it is written as the template writes it."""
    version, _ = trained
    assert 0 <= version.metrics["test"]["exact_match"] <= 1
    rows = [{"prompt": [ASKED], "completion": [CALL], "tools": [RATE]}] * 2
    encoded, _ = encode(rows, HERMES, **{"generation.rows": 1, "generation.max_new_tokens": 4})
    assert encoded.golds == ('<call>{"name": "rate", "arguments": {"bank": "strong"}}',) * 2


def rate(bank: str) -> str:
    """Say the rate.

    Args:
        bank: of which
    """
    return bank


def test_what_was_trained_with_tools_is_asked_with_tools(trained):
    _, backbone = trained

    def tokens(messages, tools):
        return backbone.tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=HERMES, add_generation_prompt=True
        )["input_ids"]

    # As OpenAI's clients give them: a call's arguments are a text, and there are no words beside it.
    openai = {"function": {"name": "rate", "arguments": '{"bank": "strong"}'}, "type": "function"}
    chat = [ASKED, {"role": "assistant", "content": None, "tool_calls": [openai]}, RESULT]
    alike = [ASKED, {**CALL, "content": ""}, RESULT]
    asked = [
        ("a?", [RATE]),
        (chat, [RATE, SUM]),
        (chat, json.dumps([RATE])),
        ([ASKED], [rate]),
        ([ASKED], None),
        ([ASKED], []),
    ]
    meant = [([{"role": "user", "content": "a?"}], [RATE]), (alike, [RATE, SUM]), (alike, [RATE]), ([ASKED], [rate])]
    with backbone.engine() as engine:
        requests = [engine.submit(prompt, "tiny", tools=tools) for prompt, tools in asked]
        texts = [request.result().text for request in requests]
    expected = [tokens(*one) for one in meant] + [tokens([ASKED], None)] * 2
    assert [list(request.prompt) for request in requests] == expected
    assert backbone.generate([p for p, _ in asked], "tiny", tools=[tools for _, tools in asked]) == texts
    assert backbone.generate(chat, "tiny", tools=[RATE, SUM]) == texts[1]
    row = {"messages": chat, "tools": [RATE, SUM]}
    (made,) = backbone.predict(row, "tiny", return_full_text=False)
    assert made == {"generated_text": texts[1]}
    (made,) = backbone.predict("a?", "tiny", tools=[RATE])
    assert made == {"generated_text": "a?" + texts[0]}


@pytest.mark.parametrize(
    ("prompt", "adapter", "tools", "message"),
    [
        ("a?", None, [RATE], "tools: only a chat template is told of them, and this prompt is a text"),
        ("a?", "tiny", [{"type": "function"}], "tools: tool 1: has no name"),
        ("a?", "tiny", RATE, "tools: expected a list of JSON schemas of functions, or one as JSON text, found {'type'"),
        (["a?", "b?"], "tiny", [[RATE]], "tools: 1 for 2 prompts; expected one for each, or one for all"),
    ],
)
def test_tools_that_are_none_are_refused(prompt, adapter, tools, message, trained):
    with pytest.raises(UsageError) as caught:
        trained[1].generate(prompt, adapter, tools=tools)
    assert str(caught.value).startswith(message)
