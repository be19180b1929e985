"""Rows as people's files have them: Alpaca's, ShareGPT's, chats with system prompts and tools; and what is learned."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest

from lorary.adapters import Backbone
from lorary.hub.errors import DataError, RecipeError
from lorary.training import train
from lorary.training.data import Example, load_data
from lorary.training.data.shapes.messages import as_messages
from lorary.training.fitting.losses import IGNORED
from lorary.training.progress import Reporter
from lorary.training.tasks import make_task
from lorary.training.tasks.text_generation import DEFAULT_TEMPLATE
from samples import WORDS, bpe_tokenizer, write_jsonl

ALPACA = {"prompt": "instruction", "input": "input", "completion": "output"}
CHATS = {"messages": "messages"}
SHAREGPT = [
    {"from": "system", "value": "be brief"}, {"from": "human", "value": "profit?"}, {"from": "gpt", "value": "it rose"},
    {"from": "human", "value": "sales?"}, {"from": "gpt", "value": "they fell"},
]  # fmt: skip


@pytest.fixture
def read(make_recipe, tmp_path):
    """``read(rows, columns)``: the rows as the task gets them, and the text of each with what is learned of it."""

    def read(rows, columns, **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"data.train": str(path), "data.test": write_jsonl(tmp_path / "held.jsonl", rows)}
        recipe = make_recipe("text-generation", **data, **{"data.columns": columns}, **settings)
        examples = load_data(recipe).train
        tokenizer = bpe_tokenizer()
        encoded = make_task(recipe, None).encode(examples, tokenizer, 256, lambda line: None)
        return [
            (
                tokenizer.decode(feature["input_ids"]),
                tokenizer.decode([label for label in feature["labels"] if label != IGNORED]),
            )
            for feature in encoded.features
        ]

    return read


def test_alpaca_rows_put_their_input_below_the_instruction(read):
    rows = [
        {"instruction": "sum up", "input": "profit rose", "output": "rose"},
        {"instruction": "say a", "input": "", "output": "a"},
        {"instruction": "say the", "output": "the"},
        {"instruction": "say of", "input": None, "output": "of"},
    ]
    texts = [text for text, _ in read(rows, ALPACA)]
    asked = ["sum up\nprofit rose", "say a", "say the", "say of"]
    for text, prompt in zip(texts, asked, strict=True):
        assert text.startswith("<s>" + DEFAULT_TEMPLATE.replace("{prompt}", prompt))


def test_sharegpt_rows_are_chats(read):
    ((text, learned),) = read([{"conversations": SHAREGPT}], {"messages": "conversations"})
    assert text == "<s><system>be brief<user>profit?<assistant>it rose</s><user>sales?<assistant>they fell</s>"
    assert learned == "it rose</s>they fell</s>"


@pytest.mark.parametrize(
    ("learn", "expected"),
    [
        ("last", "they fell</s>"),
        ("all", "<system>be brief<user>profit?<assistant>it rose</s><user>sales?<assistant>they fell</s>"),
    ],
)
def test_what_is_learned_of_a_chat_can_be_said(learn, expected, read):
    ((_, learned),) = read([{"conversations": SHAREGPT}], {"messages": "conversations"}, **{"prompt.learn": learn})
    assert learned == expected


def test_prompts_can_be_learned_with_their_completions(read):
    ((text, learned),) = read([{"prompt": "a", "completion": "rose"}], None, **{"prompt.learn": "all"})
    assert "<s>" + learned == text


def test_prompts_and_completions_may_be_messages(read):
    row = {"prompt": [{"role": "user", "content": "a?"}], "completion": [{"role": "assistant", "content": "rose"}]}
    assert read([row], None) == [("<s><user>a?<assistant>rose</s>", "rose</s>")]


def test_tool_calls_and_table_formats_empty_fields_pass_through(read):
    messages = [
        {"role": "user", "content": "sum?", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "sum"}}]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": [{"type": "text", "text": "it is "}, {"type": "text", "text": "3"}]},
    ]
    ((text, learned),) = read([{"messages": messages}], CHATS)
    assert text == "<s><user>sum?<assistant></s><tool>3<assistant>it is 3</s>"
    assert learned == "</s>it is 3</s>"


# Templates as models have them: one that closes a text that ends with a turn, one that drops earlier reasoning, and one
# that opens each turn with reasoning that replies may lack.
CLOSES = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}</s>{% endif %}"
)
DROPS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and loop.last %}[{{ m.reasoning_content }}]{% endif %}{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
OPENS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>[think]{% endif %}"
)
TURNS = [
    {"role": "user", "content": "profit?"}, {"role": "assistant", "content": "rose", "reasoning_content": "up"},
    {"role": "user", "content": "sales?"}, {"role": "assistant", "content": "fell", "reasoning_content": "down"},
]  # fmt: skip


def learned_by(template, messages, make_recipe, **values):
    """What is learned of a chat through a template, and what the user is told."""
    tokenizer = bpe_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    columns = {"prompt": "prompt", "completion": "completion"} if values else CHATS
    settings = {"prompt.format": "chat", "prompt.chat_template": template, "data.columns": columns}
    recipe = make_recipe("text-generation", **settings)
    notes: list[str] = []
    row = Example(values or {"messages": messages}, "a.jsonl, row 1")
    features = make_task(recipe, None).encode([row], tokenizer, 256, notes.append).features
    labels = [[label for label in feature["labels"] if label != IGNORED] for feature in features]
    return " and ".join(map(tokenizer.decode, labels)), notes


def test_turns_of_a_template_that_closes_the_text_are_all_learned(make_recipe):
    """Phi-3's: what ends the text stands behind the last turn alone."""
    learned, notes = learned_by(CLOSES, TURNS, make_recipe)
    assert learned == "rose<|end|>fell<|end|></s>"
    learned, _ = learned_by(CLOSES, TURNS[:3], make_recipe)
    assert learned == "rose<|end|>"
    assert [note for note in notes if "turns" in note] == []


def test_turns_that_the_template_rewrites_are_learned_in_rows_of_their_own(make_recipe):
    """Qwen3's drops the reasoning of all turns but the last."""
    learned, notes = learned_by(DROPS, TURNS, make_recipe)
    assert learned == "[down]fell</s> and [up]rose</s>"
    assert notes[0].startswith("1 of the assistant's turns are learned in rows of their own (first: a.jsonl, row 1)")
    assert len(notes) == 1
    assert learned_by(DROPS, [TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:]], make_recipe)[0] == "[down]fell</s>"


def test_turns_that_are_not_learned_are_counted(make_recipe):
    learned, notes = learned_by(OPENS, TURNS, make_recipe)
    assert learned == ""
    assert notes[0].startswith("2 turns of the assistant, in 1 of 1 rows, aren't learned")


@pytest.mark.parametrize("family", ["phi3", "qwen3", "llama3", "gemma"])
def test_what_is_learned_is_what_trl_learns(family, make_recipe):
    """Through its copies of the models' templates, whose training halves mark the assistant's turns."""
    folder = Path(find_spec("trl").origin).parent / "chat_templates"
    plain, marked = ((folder / f"{family}{kind}.jinja").read_text() for kind in ("", "_training"))
    turns = [{key: turn[key] for key in ("role", "content")} for turn in TURNS]
    theirs = bpe_tokenizer().apply_chat_template(
        turns, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = [token for token, mark in zip(theirs["input_ids"], theirs["assistant_masks"], strict=True) if mark]
    whole, *earlier = learned_by(plain, turns, make_recipe)[0].split(" and ")
    assert "".join([*earlier, whole]) == bpe_tokenizer().decode(ids)


def test_reasoning_that_the_template_leaves_out_is_told(make_recipe):
    _, notes = learned_by(CLOSES, TURNS, make_recipe)
    assert notes[0].startswith(
        "1 of 1 chats have reasoning or tool calls that the chat template doesn't write, so they"
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    turns = [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert "reasoning or tool calls" in learned_by(CLOSES, turns, make_recipe)[1][0]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_turns_that_are_marked_are_not_learned(mark, make_recipe):
    """As OpenAI's and axolotl's files mark them."""
    turns = [TURNS[0], {**TURNS[1], **mark}, TURNS[2], {**TURNS[3], "weight": 1, "train": True}]
    assert learned_by(CLOSES, turns, make_recipe)[0] == "fell<|end|></s>"


def test_of_a_prompt_of_messages_nothing_is_learned(make_recipe):
    learned, _ = learned_by(CLOSES, None, make_recipe, prompt=TURNS[:3], completion=TURNS[3:])
    assert learned == "fell<|end|></s>"


@pytest.mark.parametrize("written", ["tojson", "string"])
def test_arguments_of_tool_calls_are_read_as_a_template_wants_them(written, make_recipe):
    """OpenAI's files have them as JSON text: most templates write a table as JSON, some join texts."""
    put = {"tojson": "{{ c.function.arguments | tojson }}", "string": "{{ 'x' + c.function.arguments }}"}[written]
    template = CLOSES.replace(
        "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls or [] %}" + put + "{% endfor %}"
    )
    for arguments in ('{"a": 1}', {"a": 1}):
        call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
        turns = as_messages([TURNS[0], {"role": "assistant", "tool_calls": [call]}])
        learned, _ = learned_by(template, turns, make_recipe)
        assert learned == {"tojson": '{"a": 1}<|end|></s>', "string": 'x{"a": 1}<|end|></s>'}[written]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            [{"role": "assistant", "content": "x", "weight": 0}],
            "each message of the assistant is marked as not learned",
        ),
        ([{"role": "assistant", "content": "x", "weight": 0.5}], "message 1: weight 0.5, expected 1, or 0 for a turn"),
        ([{"role": "assistant", "content": "x", "train": "no"}], "message 1: train 'no', expected true, or false for"),
        ([], "expected a list of messages, found []"),
        ("hi", "expected a list of messages, found 'hi'"),
        ([{"from": "alien", "value": "x"}], "message 1: role 'alien', expected one of system, user, assistant, tool"),
        ([{"from": "human", "value": "x"}], "no message of the assistant"),
        ([{"role": "assistant", "content": " "}], "message 1: the assistant's content is empty"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "message 1: expected {role, content} with a"),
        (["hi"], "message 1: expected {role, content}"),
    ],
)
def test_messages_that_are_none_are_named(value, message, read):
    with pytest.raises(DataError) as caught:
        read([{"messages": value}], CHATS)
    assert caught.value.problems[0].partition("messages: ")[2].startswith(message)


def test_an_input_that_is_not_read_is_told(make_recipe, tmp_path):
    rows = [{"instruction": f"do {n}", "input": "x" * n, "context": "", "output": "b"} for n in range(6)]
    files = {"data.train": write_jsonl(tmp_path / "rows.jsonl", rows), "data.test": None}
    notes: list[str] = []
    alpaca = {"prompt": "instruction", "completion": "output"}
    load_data(make_recipe("text-generation", **files, **{"data.columns": alpaca}), notes.append)
    assert notes[0] == (
        f"5 of 6 rows have 'input' beside what is read (first: {tmp_path}/rows.jsonl, row 2), which isn't read; set "
        "data.columns.input to input"
    )
    load_data(make_recipe("text-generation", **files, **{"data.columns": {**alpaca, "input": "input"}}), notes.append)
    assert sum("isn't read" in line for line in notes) == 1
    write_jsonl(tmp_path / "rows.jsonl", [{**row, "chosen": "b", "rejected": "c"} for row in rows])
    pairs = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    load_data(make_recipe("text-generation", **files, **{"data.columns": pairs}), notes.append)
    assert any(line.endswith("which isn't read; put it into the prompt") for line in notes)


def test_the_developers_prompt_is_the_systems(read):
    rest = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    developer, system = (
        read([{"messages": [{"role": role, "content": "Be brief."}, *rest]}], CHATS) for role in ("developer", "system")
    )
    assert developer == system


def test_a_prompt_of_messages_needs_a_reply_of_messages(read):
    row = {"prompt": [{"role": "user", "content": "a?"}], "completion": "rose"}
    with pytest.raises(DataError, match="row 1: expected texts or messages throughout, found prompt as messages"):
        read([row], None)
    with pytest.raises(DataError, match=r"row 1: messages, but prompt\.format is 'instruction'; set it to chat"):
        read([{**row, "completion": [{"role": "assistant", "content": "b"}]}], None, **{"prompt.format": "instruction"})


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "look like Alpaca's; set data.columns to {prompt: instruc"),
        ({"conversations": SHAREGPT}, "look like ShareGPT's; set data.columns to {messages: conversations}"),
        ({"messages": []}, "look like chats; set data.columns to {messages: messages}"),
        ({"chosen": "a", "rejected": "b"}, "preference pairs; set data.columns to {chosen: chosen, rejected: r"),
        ({"input": "a", "output": "b"}, "set data.columns to {prompt: input, completion: output}"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "{prompt: question, chosen: chosen, rejected: rejected}"),
        ({"conversations": [], "chosen": {"from": "gpt"}, "rejected": []}, "{prompt: conversations, chosen: chosen, "),
        ({"prompt": "a", "chosen": [], "rejected": [], "messages": []}, "{prompt: prompt, chosen: chosen, "),
        ({"question": "a", "answer": "b"}, "set data.columns to {prompt: question, completion: answer}"),
    ],
)  # fmt: skip
def test_known_layouts_are_recognised_where_columns_are_missing(row, line, read):
    with pytest.raises(DataError) as caught:
        read([row], None)
    assert line in caught.value.problems[-1]
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.columns": {"text": "text"}, "prompt.learn": "replies"}, "prompt.learn: of running text all is learned"),
        ({"prompt.learn": "last"}, "prompt.learn: only a chat has a last turn among others, the format is 'inst"),
        ({"prompt.learn": "some"}, "prompt.learn: expected one of replies, last, all, found 'some'"),
    ],
)  # fmt: skip
def test_settings_of_learning_are_checked(settings, message, make_recipe):
    with pytest.raises(RecipeError) as caught:
        make_recipe("text-generation", **settings)
    assert message in str(caught.value)


def test_columns_that_are_not_read_though_they_count_are_told(make_recipe, tmp_path):
    rows = [{"prompt": "a", "completion": "b", "system": "be brief", "history": [], "label": bool(n)} for n in range(4)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    notes: list[str] = []
    load_data(make_recipe("text-generation", **{"data.train": path}), notes.append)
    place = f"first: {path}, row 1"
    assert notes[0].startswith(f"4 of 4 rows have 'system' beside what is read ({place}), which isn't read; put it")
    assert notes[1].startswith(f"1 of 4 rows have the label false ({place}), and are learned like the others; leave")
    assert not any("history" in note for note in notes)


def test_a_template_that_ends_no_turn_is_told(make_recipe):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    recipe = make_recipe("text-generation", **{"prompt.format": "chat", "prompt.chat_template": template})
    notes: list[str] = []
    make_task(recipe, None).encode([Example({"prompt": "a", "completion": "b"}, "")], bpe_tokenizer(), 64, notes.append)
    assert notes == [
        "the chat template ends the assistant's turns with no special token: a generation won't know its end"
    ]


@pytest.mark.parametrize("form", ["instruction", "chat"])
def test_an_adapter_stops_where_its_completions_stopped(form, make_recipe, registry, tmp_path):
    """Padding is the end-of-text token here, which stays learned all the same (TRL#1623)."""
    rows = [{"prompt": word, "completion": "rose"} for word in WORDS]
    data = {
        "data.train": write_jsonl(tmp_path / "rows.jsonl", rows * 4),
        "data.test": write_jsonl(tmp_path / "t.jsonl", rows[:5]),
    }
    settings = {"prompt.format": form, "training.epochs": 6, "training.learning_rate": 0.02, "lora.rank": 8}
    recipe = make_recipe("text-generation", **data, **settings)
    reporter = Reporter()
    version = train(recipe, registry, reporter)
    assert version.metrics["test"]["token_accuracy"] > 0.95
    backbone = Backbone.from_pretrained(recipe.base, device="cpu", registry=registry)
    assert backbone.tokenizer.pad_token_id == backbone.tokenizer.eos_token_id
    backbone.load("tiny@1")
    texts = backbone.generate(["profit", "bank of the firm"], adapter="tiny", max_new_tokens=40, do_sample=False)
    assert texts == ["rose", "rose"]


@pytest.mark.parametrize(
    "write",
    [json.dumps, repr, lambda chat: json.dumps(chat, indent=1), lambda chat: str(numpy.array(chat, dtype=object))],
    ids=["json", "list", "lines", "arrays"],
)
@pytest.mark.parametrize("chat", [SHAREGPT, [
    {"role": "user", "content": "it's \"profit\"?\nor sales"}, {"role": "assistant", "content": "it rose"},
]], ids=["sharegpt", "openai"])  # fmt: skip
def test_a_chat_as_text(read, chat, write):
    """As CSV files have it, which hold no lists."""
    assert read([{"messages": write(chat)}], CHATS) == read([{"messages": chat}], CHATS)


@pytest.mark.parametrize(
    "text", ["[{'role': 'user'", "hello", "3", '"a"', "", "[" * 5000, "{'role': a}"], ids=lambda t: t[:9]
)
def test_other_texts_are_no_chats(read, text):
    with pytest.raises(DataError, match=r"row 1, messages: (expected a list of messages, found|is empty)"):
        read([{"messages": text}], CHATS)
