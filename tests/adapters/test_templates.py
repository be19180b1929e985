"""Chat templates of strangers: what they can't do, and what they can't do for long."""

import sys
import time

import pytest
from jinja2 import Environment

from lorary.adapters.text import templates
from lorary.adapters.text.templates import render_chat
from lorary.hub.errors import UnsupportedAdapterError, UsageError
from tiny import make_tokenizer

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}] * 20
USUAL = (
    "{% macro say(m) %}<|{{ m.role }}|>{{ m.content | trim }}{% endmacro %}"
    "{% for m in messages %}{% set last = loop.last %}{{ say(m) }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ENDLESS = {
    "loops": "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "only for some": "{% if messages | length == 40 %}"
    + "{% for a in range(99999) %}" * 4
    + "{% endfor %}" * 4
    + "{% endif %}",
}
DOUBLING = (
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("llama")


def test_a_usual_template_is_rendered_as_transformers_does(tokenizer):
    expected = tokenizer.apply_chat_template(MESSAGES, chat_template=USUAL, add_generation_prompt=True, tokenize=False)
    assert render_chat(tokenizer, MESSAGES, USUAL) == expected
    assert sys.gettrace() is None


def test_of_several_templates_the_one_for_tools_is_taken_where_there_are_some(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", {"default": USUAL, "tool_use": USUAL + "{{ tools[0].name }}"})
    usual = render_chat(tokenizer, MESSAGES, USUAL)
    assert render_chat(tokenizer, MESSAGES, None) == usual
    assert render_chat(tokenizer, MESSAGES, None, [{"name": "sum"}]) == usual + "sum"


@pytest.mark.parametrize("kind", ENDLESS)
def test_one_that_takes_forever_is_broken_off(tokenizer, monkeypatch, kind):
    monkeypatch.setattr(templates, "PATIENCE", 0.2)
    started = time.monotonic()
    with pytest.raises(UnsupportedAdapterError, match=r"takes more than 0\.2 s"):
        render_chat(tokenizer, MESSAGES, ENDLESS[kind])
    assert time.monotonic() - started < 2
    assert sys.gettrace() is None


def test_one_that_fills_the_memory_is_broken_off(tokenizer, monkeypatch):
    monkeypatch.setattr(templates, "MEMORY", 50_000_000)
    with pytest.raises(UnsupportedAdapterError, match="takes more than 50,000,000 bytes"):
        render_chat(tokenizer, MESSAGES, DOUBLING)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no\\x1b[31m') }}",
        "{% for %}",
    ],
)
def test_one_that_reaches_out_is_refused(tokenizer, template):
    with pytest.raises(UsageError, match="the chat template fails on this conversation"):
        render_chat(tokenizer, MESSAGES, template)


def test_a_debugger_stays_where_it_is(tokenizer):
    def debugger(frame, event, argument):
        return None

    before = sys.gettrace()
    sys.settrace(debugger)
    try:
        render_chat(tokenizer, MESSAGES, USUAL)
        found = sys.gettrace()
    finally:
        sys.settrace(before)
    assert found is debugger


def test_jinja_calls_its_code_what_the_bounds_look_for():
    assert Environment().from_string("x").root_render_func.__code__.co_filename == templates._FILE
