"""What rows tell their chat template by name: over the recipe's, and as TRL tells it."""

from __future__ import annotations

import json

import pytest
from trl_rows import OFF, table, trl_template

from lorary.adapters import Backbone
from lorary.hub import Registry
from lorary.hub.errors import DataError, RecipeError, UsageError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.tasks import make_task
from samples import bpe_tokenizer, write_jsonl

ROLE = "chat_template_kwargs"
ASKED, SAID = {"role": "user", "content": "the rate of a bank?"}, {"role": "assistant", "content": "it fell today"}
WEAK = {"role": "assistant", "content": "weak"}
LAYOUTS = {
    "prompts": {"prompt": [ASKED], "completion": [SAID]},
    "chats": {"messages": [ASKED, WEAK, ASKED, SAID]},
    "pairs": {"prompt": [ASKED], "chosen": [SAID], "rejected": [WEAK]},
}
# Writes all that it is told before the chat.
TELLING = (
    "{{ mood }}|{{ day }}|{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOLD = {
    "qwen3": [{"enable_thinking": False}, {"enable_thinking": True}, {}, {"enable_thinking": False}],
    "telling": [{"mood": "glad", "day": 1}, {"mood": "sad", "day": 2}, {"mood": "calm", "day": 3}],
}


@pytest.fixture
def encode(make_recipe, tmp_path):
    """``encode(rows, template)``: their features and texts, and what the user is told."""

    def encode(rows, template, columns=None, **settings):
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        columns = columns or {role: role for role in {role: None for row in rows for role in row}}
        given = {"data.train": path, "data.test": str(tmp_path / "rows.json"), "data.columns": columns}
        recipe = make_recipe("text-generation", **given, **{"prompt.chat_template": template}, **settings)
        notes: list[str] = []
        tokenizer = bpe_tokenizer()
        encoded = make_task(recipe, None).encode(load_data(recipe).test, tokenizer, 4096, notes.append)
        texts = [tokenizer.decode(feature["input_ids"]) for feature in encoded.features]
        return encoded.features, texts, notes

    return encode


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("template", TOLD)
def test_rows_are_those_of_trls_own_trainers(layout, template, encode, bases, tmp_path):
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    config, trainer = (DPOConfig, DPOTrainer) if layout == "pairs" else (SFTConfig, SFTTrainer)
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = TELLING if template == "telling" else trl_template(template)
    tokenizer.pad_token = tokenizer.eos_token
    told = TOLD[template]
    rows = [LAYOUTS[layout]] * len(told)
    theirs = trainer(
        bases("llama"), args=config(str(tmp_path / "trl"), **OFF), processing_class=tokenizer,
        train_dataset=table([{**row, "tools": None} for row in rows]).add_column(ROLE, told),
    ).train_dataset  # fmt: skip
    own, _, _ = encode(
        [{**row, ROLE: own} for row, own in zip(rows, told, strict=True)], tokenizer.chat_template,
        **({"prompt.learn": "all"} if layout == "chats" else {}),
    )  # fmt: skip
    names = ("prompt_ids", "chosen_ids", "rejected_ids") if layout == "pairs" else ("input_ids", "labels")
    for mine, other in zip(own, theirs, strict=True):
        for name in names:
            # A first token that is learned is predicted by nothing; here it has no label.
            assert mine[name][name == "labels" :] == other[name][name == "labels" :]
    if (layout, template) != ("chats", "qwen3"):  # which writes thoughts as an answer begins, and here none does
        assert own[0] != own[1]


def test_a_rows_own_win_over_the_recipes(encode):
    chat = LAYOUTS["chats"]
    rows = [
        {**chat, ROLE: {"mood": "glad"}},
        chat,
        {**chat, ROLE: None},
        {**chat, ROLE: '{"day": "Monday"}'},  # as a CSV file has it
        {**chat, ROLE: ""},
        {**chat, ROLE: {"mood": "sad", "day": "Friday"}},
    ]
    _, texts, notes = encode(rows, TELLING, **{"prompt.chat_template_kwargs": {"mood": "calm", "day": "Sunday"}})
    assert [text.partition("<user>")[0] for text in texts] == [
        "glad|Sunday|", "calm|Sunday|", "calm|Sunday|", "calm|Monday|", "calm|Sunday|", "sad|Friday|",
    ]  # fmt: skip
    assert notes == []


def test_prompts_that_are_texts_become_chats_and_the_column_may_have_another_name(encode):
    rows = [{"prompt": "a?", "completion": "b", "settings": {"mood": "glad"}}] * 2
    columns = {"prompt": "prompt", "completion": "completion", ROLE: "settings"}
    _, texts, _ = encode(rows, TELLING, columns)
    assert texts == ["glad||<user>a?<assistant>b</s>"] * 2
    with pytest.raises(DataError) as caught:
        encode([*rows, {**rows[0], "settings": {"moood": "glad", "day": 1}}], TELLING, columns)
    (problem,) = caught.value.problems
    assert problem.endswith("row 3, settings: the chat template knows no 'moood'; near it: mood")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("enable_thinking", "expected a table of names and values, such as {enable_thinking: false}, found 'enable_th"),
        ([{"mood": 1}], "expected a table of names and values"),
        ({"tools": []}, "'tools' isn't the template's to be told; leave it out"),
        ({"chat_template": "{{ 1 }}"}, "'chat_template' isn't the template's to be told; leave it out"),
        ({"my mood": 1}, "expected names of variables, such as enable_thinking, found 'my mood'"),
        ({"mood": float("nan")}, "mood: expected a value that JSON has"),
        ({"mood": "\ud83d"}, "mood: expected a value that JSON has"),
    ],
)
def test_what_a_row_cant_tell_is_a_bad_row(told, message, encode):
    with pytest.raises(DataError) as caught:
        encode([LAYOUTS["chats"], {**LAYOUTS["chats"], ROLE: told}], TELLING)
    problem, _ = caught.value.problems  # the held-out rows are the same
    place, _, found = problem.partition(f", {ROLE}: ")
    assert place.endswith("row 2")
    assert found.startswith(message)


def test_settings_and_columns_are_checked(encode, make_recipe, tmp_path):
    rows = [{**LAYOUTS["chats"], ROLE: {"mood": "glad"}}] * 4
    with pytest.raises(RecipeError, match=r"prompt\.format: only a chat template is told of chat_template_kwargs"):
        encode([{**LAYOUTS["prompts"], ROLE: {}}] * 2, None, **{"prompt.format": "instruction"})
    with pytest.raises(RecipeError, match=r"and chat_template_kwargs and tools beside any but text, found chat_temp"):
        make_recipe("text-generation", **{"data.columns": {"text": "text", ROLE: ROLE}})
    path = write_jsonl(tmp_path / "unnamed.jsonl", rows)
    notes: list[str] = []
    given = {"data.train": path, "data.test": None}
    load_data(make_recipe("text-generation", **given, **{"data.columns": {"messages": "messages"}}), notes.append)
    assert notes[0].startswith(f"4 of 4 chats have '{ROLE}' beside their messages")
    assert f"which isn't read; set data.columns.{ROLE} to {ROLE}" in notes[0]
    with pytest.raises(DataError) as caught:
        load_data(make_recipe("text-generation", **given))
    assert f"set data.columns to {{messages: messages, {ROLE}: {ROLE}}}" in caught.value.problems[-1]


def test_a_row_is_asked_as_it_is_learned(recipe_in, tmp_path):
    """For the metrics of generated texts, and by ``predict``, whose call a row's own win over."""
    rows = [{"prompt": [ASKED], "completion": [SAID], ROLE: {"mood": mood}} for mood in ("glad", "sad") * 4]
    recipe = recipe_in(
        tmp_path, "text-generation",
        **{
            "data.train": write_jsonl(tmp_path / "rows.jsonl", rows), "data.test": None, "training.max_steps": 2,
            "data.columns": {role: role for role in rows[0]}, "prompt.chat_template": TELLING, "generation.rows": 2,
            "generation.max_new_tokens": 4, "training.max_length": 256,
            "prompt.chat_template_kwargs": {"day": "Monday"},
        },
    )  # fmt: skip
    registry = Registry(tmp_path / "registry.db")
    version = train(recipe, registry)
    assert version.manifest.prompt.chat_template_kwargs == {"day": "Monday"}
    backbone = Backbone.from_pretrained(recipe.base, registry=registry, device="cpu")
    backbone.load("tiny")
    for row, call, all_told in (
        (rows[0], None, {"mood": "glad"}),
        (rows[0], {"mood": "calm", "day": "Friday"}, {"mood": "glad", "day": "Friday"}),
        ({**rows[0], ROLE: '{"mood": "sad"}'}, None, {"mood": "sad"}),
        ({**rows[0], ROLE: None}, {"mood": "calm"}, {"mood": "calm"}),
    ):
        (made,) = backbone.predict(row, "tiny", return_full_text=False, chat_template_kwargs=call)
        assert made == {"generated_text": backbone.generate([ASKED], "tiny", chat_template_kwargs=all_told)}
    with pytest.raises(UsageError, match="chat_template_kwargs: the chat template knows no 'moood'"):
        backbone.predict({**rows[0], ROLE: {"moood": 1}}, "tiny")
