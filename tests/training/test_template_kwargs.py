"""What a chat template is told by name: in training as TRL tells it, and again whenever the adapter is asked."""

from datetime import date
from functools import reduce

import pytest
from trl_rows import OFF, table, trl_template

from lorary.adapters import Backbone
from lorary.hub import Registry
from lorary.hub.card import make_card
from lorary.hub.errors import RecipeError, TrainingError, UsageError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.tasks import make_task
from samples import bpe_tokenizer, write_jsonl

ASKED, SAID = {"role": "user", "content": "the rate of a bank?"}, {"role": "assistant", "content": "it fell today"}
ROWS = [{"prompt": [ASKED], "completion": [SAID]}, {"prompt": [ASKED, SAID, ASKED], "completion": [SAID]}]
# As Qwen3's: an empty thought stands before the last answer, and belongs to the question where thinking is off.
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
    "{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}{% endif %}"
)
OFF_KWARGS = {"enable_thinking": False}


@pytest.fixture
def make(make_recipe, tmp_path):
    """``make(template, kwargs, **settings)``: a recipe of chats."""

    def make(template, kwargs, **settings):
        path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
        given = {"data.train": path, "data.test": write_jsonl(tmp_path / "rows-held-out.jsonl", ROWS)}
        columns = {"data.columns": {role: role for role in ROWS[0]}}
        prompt = {"prompt.chat_template": template, "prompt.chat_template_kwargs": kwargs, "prompt.format": "chat"}
        return make_recipe("text-generation", **given, **columns, **{**prompt, **settings})

    return make


def nested(levels):
    return reduce(lambda inner, _: [inner], range(levels - 1), [])


def features_of(recipe):
    return make_task(recipe, None).encode(load_data(recipe).test, bpe_tokenizer(), 4096, lambda note: None).features


@pytest.mark.parametrize("kwargs", [{"enable_thinking": False}, {"enable_thinking": True}])
def test_rows_are_those_of_trls_own_trainer(kwargs, make, bases, tmp_path):
    from trl import SFTConfig, SFTTrainer

    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = trl_template("qwen3")
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{**row, "tools": None} for row in ROWS]
    trainer = SFTTrainer(
        bases("llama"), args=SFTConfig(str(tmp_path / "trl"), **OFF), processing_class=tokenizer,
        train_dataset=table(rows).add_column("chat_template_kwargs", [kwargs] * len(rows)),
    )  # fmt: skip
    for own, theirs in zip(features_of(make(tokenizer.chat_template, kwargs)), trainer.train_dataset, strict=True):
        assert own["input_ids"] == theirs["input_ids"]
        assert own["labels"] == theirs["labels"]


def test_it_decides_what_is_learned(make):
    tokenizer = bpe_tokenizer()

    def learned(kwargs):
        return [
            tokenizer.decode([label for label in feature["labels"] if label >= 0])
            for feature in features_of(make(THINKING, kwargs))
        ]

    assert learned(None) == learned({}) == ["<think></think>it fell today</s>"] * 2
    assert learned(OFF_KWARGS) == ["it fell today</s>"] * 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tools": []}, "'tools' isn't the template's to be told"),
        ({"tokenize": True}, "'tokenize' isn't the template's to be told"),
        ({"enable-thinking": False}, "expected names of variables, such as enable_thinking, found 'enable-thinking'"),
        ({"class": 1}, "expected names of variables"),
        (
            {"\N{FULLWIDTH LATIN SMALL LETTER T}ools": 1},
            "expected names of variables",
        ),  # which Python takes for `tools`
        ({"bos_token": "<s>"}, "'bos_token' isn't the template's to be told"),
        ({"strftime_now": "1 May 2026"}, "'strftime_now' isn't the template's to be told"),
        ({"day": float("nan")}, "day: expected a value that JSON has"),
        ({"day": date(2026, 5, 1)}, "a date in quotes"),  # as YAML reads 2026-05-01
        ({"days": {1: "Monday", "other": "Sunday"}}, "tables of these, whose names are texts), found {1: 'Monday', "),
        ({"number": 10**31}, "number: expected a value that JSON has"),
        ({"number": 10**5000}, "found what is too large to be shown (int)"),
        ({"deep": nested(61)}, "deep: expected a value that JSON has"),
    ],
)
def test_what_it_can_be_told_is_checked(kwargs, message, make):
    with pytest.raises(RecipeError, match=r"prompt\.chat_template_kwargs: ") as caught:
        make(THINKING, kwargs)
    assert message in str(caught.value)


def test_only_chats_have_a_template_to_tell(make):
    with pytest.raises(RecipeError, match=r"kwargs: only format 'chat' has a template to tell, .* 'instruction'"):
        make(None, OFF_KWARGS, **{"prompt.format": "instruction"})


def test_a_template_that_knows_nothing_of_it_is_told(make):
    with pytest.raises(
        TrainingError, match=r"prompt\.chat_template_kwargs: .* no 'enable_thinkng'; near it: enable_thin"
    ):
        features_of(make(THINKING, {"enable_thinkng": False}))


@pytest.fixture(scope="module")
def trained(recipe_in, tmp_path_factory):
    """An adapter that was trained without thinking: its version, its registry and its backbone."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = recipe_in(
        folder, "text-generation",
        **{
            "data.train": write_jsonl(folder / "rows.jsonl", ROWS * 4), "data.test": None, "training.max_steps": 2,
            "data.columns": {role: role for role in ROWS[0]}, "generation.rows": 1, "generation.max_new_tokens": 4,
            "prompt.format": "chat", "prompt.chat_template": THINKING, "prompt.chat_template_kwargs": OFF_KWARGS,
            "training.max_length": 256,
        },
    )  # fmt: skip
    registry = Registry(folder / "registry.db")
    version = train(recipe, registry)
    backbone = Backbone.from_pretrained(recipe.base, registry=registry, device="cpu")
    backbone.load("tiny")
    return version, registry, backbone


def test_it_is_told_again_whenever_the_adapter_is_asked(trained):
    version, registry, backbone = trained
    assert version.manifest.prompt.chat_template_kwargs == OFF_KWARGS
    tokenizer = backbone.tokenizer

    def tokens(**kwargs):
        return tokenizer.apply_chat_template([ASKED], chat_template=THINKING, add_generation_prompt=True, **kwargs)

    with backbone.engine() as engine:
        told = [None, {}, OFF_KWARGS, {"enable_thinking": True}]
        requests = [engine.submit([ASKED], "tiny", chat_template_kwargs=kwargs) for kwargs in told]
        texts = [request.result().text for request in requests]
    quiet, loud = tokens(enable_thinking=False)["input_ids"], tokens()["input_ids"]
    assert [list(request.prompt) for request in requests] == [quiet, quiet, quiet, loud]
    assert len(quiet) > len(loud)
    assert backbone.generate([[ASKED]] * 4, "tiny", chat_template_kwargs=told) == texts
    for kwargs, text in zip(told, texts, strict=True):
        assert backbone.generate([ASKED], "tiny", chat_template_kwargs=kwargs) == text
        (made,) = backbone.predict({"messages": [ASKED]}, "tiny", return_full_text=False, chat_template_kwargs=kwargs)
        assert made == {"generated_text": text}
    assert "enable_thinking=False" in make_card(version, registry.checkpoint(version))


@pytest.mark.parametrize(
    ("prompt", "kwargs", "message"),
    [
        ([ASKED], {"enable_thinkin": True}, "chat_template_kwargs: the chat template knows no 'enable_thinkin'; near"),
        ([ASKED], {"tools": []}, "chat_template_kwargs: 'tools' isn't the template's to be told"),
        ([[ASKED]] * 2, [None], "chat_template_kwargs: 1 for 2 prompts; expected one for each, or one for all"),
        ([ASKED], "enable_thinking", "chat_template_kwargs: expected a table of names and values"),
        ([ASKED], {"enable_thinking": nested(10_000)}, "chat_template_kwargs: enable_thinking: expected a value that"),
        ("a?", OFF_KWARGS, "chat_template_kwargs: only a chat template is told of them, and this prompt is a text"),
    ],
)
def test_calls_that_tell_what_cant_be_told(trained, prompt, kwargs, message):
    _, _, backbone = trained
    adapter = None if isinstance(prompt, str) else "tiny"
    with pytest.raises(UsageError) as caught:
        backbone.generate(prompt, adapter, chat_template_kwargs=kwargs)
    assert str(caught.value).startswith(message)
