"""Every task's head on one shared body: equal to transformers' own task class in PEFT's hands, alone and mixed."""

import gc

import numpy as np
import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.heads.task_heads import in_parts
from lorary.adapters.matching import fitting
from lorary.hub.manifest import BaseIdentity, Manifest
from tiny import make_adapter, peft_reference

TASKS = ("text-classification", "token-classification", "question-answering")
CASES = [
    (family, task)
    for family in ("bert", "roberta", "distilbert", "gpt2", "llama", "t5", "bart")
    for task in TASKS
    if (family, task) != ("bart", "token-classification")  # transformers has no such class
]
ROWS = {
    "text-classification": "profit rose the bank",
    "token-classification": "patient with asthma and cancer",
    "question-answering": {"question": "profit of the bank", "context": "shares rose and profit fell the bank cash"},
    "feature-extraction": "free cash",
    None: "the dog ran with the cat",
}


def lora(family, task):
    """Heads that PEFT doesn't save unasked."""
    named = family in ("t5", "bart") and task == "text-classification"
    return {"modules_to_save": ["classification_head"]} if named else {}


def load_all(backbone, base, folder, family, *tasks):
    """Load an adapter of each task, named by it; gives the adapters' folders."""
    made = {}
    for seed, task in enumerate(tasks, start=1):
        made[task] = make_adapter(base, folder / task, task=task, seed=seed, **lora(family, task))
        backbone.load(made[task])
    return made


def tasks_of(family):
    return [task for case, task in CASES if case == family]


def logits_of(output):
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output.logits


def assert_close(got, want):
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        for key in want:
            assert_close(got[key], want[key])
    elif isinstance(want, list):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_close(one, other)
    elif isinstance(want, (float, np.floating)):
        assert float(got) == pytest.approx(float(want), abs=1e-5)
    else:
        assert got == want


@pytest.mark.parametrize(("family", "task"), CASES)
def test_every_head_equals_its_own_class(bases, tmp_path, family, task):
    backbone = Backbone.from_pretrained(str(bases(family)))
    made = load_all(backbone, bases(family), tmp_path, family, task)
    reference = peft_reference(bases(family), made[task], task=task)
    for text in (ROWS["text-classification"], ROWS["token-classification"]):
        inputs = backbone.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            want = logits_of(reference(**inputs))[0]
        got = backbone.logits(inputs["input_ids"].tolist(), task)[0]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama", "t5", "bart"])
def test_rows_of_all_tasks_share_one_pass(bases, tmp_path, family):
    """Each row's answer is that of its solo run, and the body runs once for all of them."""
    backbone = Backbone.from_pretrained(str(bases(family)))
    load_all(backbone, bases(family), tmp_path, family, *tasks_of(family), "feature-extraction")
    names = [*tasks_of(family), "feature-extraction", None, tasks_of(family)[0]]
    rows = [ROWS[name] for name in names]
    solo = [backbone.predict([row], name)[0] for row, name in zip(rows, names, strict=True)]
    backbone.predict(rows, names)  # once, whether padding shows is asked of the body
    passes = {}
    parts = (backbone.body.get_encoder(), backbone.body.get_decoder()) if in_parts(backbone.body) else (backbone.body,)
    for part in parts:
        part.register_forward_hook(lambda module, *_: passes.update({module: passes.get(module, 0) + 1}))
    assert_close(backbone.predict(rows, names), solo)
    assert list(passes.values()) == [1] * len(parts)


def test_a_parted_body_decodes_only_for_heads_that_read_its_decoder(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("t5")))
    load_all(backbone, bases("t5"), tmp_path, "t5", "token-classification", "text-classification")
    decoded = []
    backbone.body.get_decoder().register_forward_hook(lambda _, args, output: decoded.append(len(output[0])))
    backbone.predict([ROWS["token-classification"], ROWS[None]], ["token-classification", None])
    assert decoded == []
    names = ["token-classification", "text-classification", None, "text-classification"]
    backbone.predict([ROWS[None]] * 4, names)
    assert decoded == [2]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_texts_and_pairs_share_a_batch(bases, tmp_path, family):
    """transformers' classifiers of encoder-decoders refuse rows with different numbers of end-of-sequence tokens."""
    backbone = Backbone.from_pretrained(str(bases(family)))
    load_all(backbone, bases(family), tmp_path, family, "text-classification")
    rows = ["profit rose", {"text": "a dog ran", "text_pair": "the cat sat"}, "story mother house"]
    together = backbone.predict(rows, "text-classification")
    assert_close(together, [backbone.predict([row], "text-classification")[0] for row in rows])


@pytest.mark.parametrize(
    ("family", "generating"),
    [("gpt2", "text-generation"), ("llama", "text-generation"), ("t5", "seq2seq"), ("bart", "seq2seq")],
)
def test_language_models_generate_and_serve_heads_in_one_call(bases, tmp_path, family, generating):
    backbone = Backbone.from_pretrained(str(bases(family)))
    made = load_all(backbone, bases(family), tmp_path, family, *tasks_of(family), generating)
    names = [generating, *tasks_of(family), generating, None]
    rows = [ROWS.get(name, "story mother house") for name in names]
    settings = {"max_new_tokens": 5, "do_sample": False}
    params = [settings if name == generating else {} for name in names]
    solo = [backbone.predict([row], name, **own)[0] for row, name, own in zip(rows, names, params, strict=True)]
    assert_close(backbone.predict(rows, names, **settings), solo)
    inputs = backbone.tokenizer(rows[0], return_tensors="pt", return_token_type_ids=False)
    sequence = peft_reference(bases(family), made[generating], task=generating).generate(
        **inputs, **settings, pad_token_id=0
    )[0]
    start = 0 if generating == "seq2seq" else inputs["input_ids"].shape[1]
    want = backbone.tokenizer.decode(sequence[start:], skip_special_tokens=True)
    assert solo[0][0]["generated_text"] == (rows[0] + want if start else want)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "bart"])
def test_heads_of_one_task_are_each_their_adapters_own(bases, tmp_path, monkeypatch, family):
    """The second one's task model is a copy of the first one's, which isn't changed by it."""
    task, built = "text-classification", []
    build = fitting.empty_head
    monkeypatch.setattr(fitting, "empty_head", lambda *args, **kwargs: built.append(args) or build(*args, **kwargs))
    backbone = Backbone.from_pretrained(str(bases(family)))
    folders = {
        name: make_adapter(bases(family), tmp_path / name, task=task, seed=seed, **lora(family, task))
        for seed, name in enumerate(["a", "b"])
    }
    labels = {"a": ("up", "down", "flat"), "b": ("spam", "advert", "letter")}
    problems = {"a": None, "b": "multi_label_classification"}
    for name, folder in folders.items():
        Manifest(task, BaseIdentity("x"), labels=labels[name], problem_type=problems[name]).write(folder)
        backbone.load(folder)
    for name, folder in folders.items():
        ids = backbone.tokenizer([ROWS[task]])["input_ids"]
        with torch.no_grad():
            want = peft_reference(bases(family), folder, task=task)(input_ids=torch.tensor(ids)).logits[0]
        torch.testing.assert_close(backbone.logits(ids, name)[0], want, atol=1e-5, rtol=1e-5)
        answers = backbone.predict([ROWS[task]], name, top_k=None)[0]
        scores = want.sigmoid() if problems[name] else want.softmax(-1)
        got = {answer["label"]: answer["score"] for answer in answers}
        assert got == pytest.approx(dict(zip(labels[name], scores.tolist(), strict=True)), abs=1e-5)
    assert len(built) == 1


def test_heads_of_any_number_of_labels_keep_one_empty_body(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("bert")))
    adapters = {
        labels: make_adapter(bases("bert"), tmp_path / f"{labels}", task="text-classification", labels=labels)
        for labels in (2, 3, 4)
    }

    def modules_after(labels):
        backbone.load(adapters[labels], name="tone")
        backbone.unload("tone")
        gc.collect()
        return sum(type(item) is torch.nn.Linear for item in gc.get_objects())

    first, *others = map(modules_after, adapters)
    assert others == [first + 1, first + 2]  # the classifiers


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_the_problem_type_says_how_scores_are_read(bases, tmp_path, problem):
    from transformers import pipeline

    labels = 1 if problem == "regression" else 3
    folder = make_adapter(bases("bert"), tmp_path / "it", task="text-classification", labels=labels)
    names = tuple(f"LABEL_{index}" for index in range(labels))
    Manifest("text-classification", BaseIdentity("x"), labels=names, problem_type=problem).write(folder)
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(folder)
    model = peft_reference(bases("bert"), folder, task="text-classification", labels=labels).base_model.model
    model.config.problem_type = problem
    reference = pipeline("text-classification", model=model, tokenizer=backbone.tokenizer)
    texts = ["profit rose the bank", "patient with asthma"]
    for params in ({}, {"top_k": None}):
        got = backbone.predict(texts, "it", **params)
        assert_close(got, reference(texts, **params))
    if problem == "regression":
        (logit,) = backbone.logits(backbone.tokenizer(texts[:1])["input_ids"], "it")[0].tolist()
        assert backbone.predict(texts[:1], "it")[0]["score"] == pytest.approx(logit, abs=1e-5)


def test_the_labels_of_a_head_are_those_of_tasks_that_have_some(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("bert")))
    loaded = backbone.load(make_adapter(bases("bert"), tmp_path / "qa", task="question-answering"))
    assert (loaded.task, loaded.labels) == ("question-answering", None)
