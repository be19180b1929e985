"""What PEFT notes of an adapter's task: a type that it was told, else the class that was trained."""

from dataclasses import replace

import pytest

from checkpoints import make_checkpoint
from lorary.hub import Registry
from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.errors import RegistryConflictError, UsageError
from lorary.hub.importing import import_registry
from lorary.hub.noted_task import noted_task
from lorary.hub.remote import pull, push

BERT = "transformers.models.bert.modeling_bert"
HEAD = ["classifier"]
PLAIN = [
    ("BertForSequenceClassification", HEAD, "text-classification"),
    ("LlamaForSequenceClassification", ["score"], "text-classification"),
    ("BertForTokenClassification", HEAD, "token-classification"),
    ("BertForQuestionAnswering", ["qa_outputs"], "question-answering"),
    ("XLNetForQuestionAnsweringSimple", ["qa_outputs"], "question-answering"),
    ("BertForMaskedLM", None, "fill-mask"),
    ("LlamaForCausalLM", None, "text-generation"),
    ("GPT2LMHeadModel", None, "text-generation"),
    ("BertModel", None, "feature-extraction"),
    ("T5EncoderModel", None, "feature-extraction"),
]
OPEN = [
    ("BertForSequenceClassification", None),  # its head wasn't saved
    ("BertForSequenceClassification", []),
    ("T5ForConditionalGeneration", None),  # a summary, a translation, anything
    ("MarianMTModel", None),
    ("GPT2DoubleHeadsModel", None),
    ("BertForPreTraining", None),
    ("BertForMultipleChoice", HEAD),
    ("Classifier", HEAD),
    ("", None),
    (None, None),
    (["BertModel"], None),
]


def noting(name, saved, library=BERT):
    mapping = {"base_model_class": name, "parent_library": library}
    return {"task_type": None, "auto_mapping": mapping, "modules_to_save": saved}


@pytest.mark.parametrize(("name", "saved", "task"), PLAIN)
def test_a_class_that_has_one_task(add, name, saved, task):
    assert add(manifest=False, domain="x", config=noting(name, saved)).task == task


@pytest.mark.parametrize(("name", "saved"), OPEN, ids=str)
def test_what_leaves_it_open_is_asked_for(add, name, saved):
    config = noting(name, saved)
    with pytest.raises(UsageError, match="doesn't say its task"):
        add(manifest=False, domain="x", config=config)
    assert add(manifest=False, domain="x", config=config, task="translation").task == "translation"


def typed(task_type):
    return {"task_type": task_type, "modules_to_save": ["classifier", "score"]}


@pytest.mark.parametrize(
    ("config", "task", "told"),
    [
        (typed("SEQ_CLS"), "token-classification", r"text-classification \(task_type SEQ_CLS in"),
        (typed("TOKEN_CLS"), "text-classification", r"token-classification \(task_type TOKEN_CLS in"),
        (typed("QUESTION_ANS"), "token-classification", r"question-answering \(task_type QUESTION_ANS in"),
        (noting("BertForSequenceClassification", HEAD), "token-classification",
         r"text-classification \(BertForSequenceClassification in"),
    ],
)  # fmt: skip
def test_the_head_of_another_task_is_refused(add, registry, config, task, told):
    words = rf"was trained for {told} adapter_config\.json\), not for '{task}'; leave the task out, or correct"
    with pytest.raises(RegistryConflictError, match=words):
        add(manifest=False, domain="x", config=config, task=task)
    assert registry.versions() == []
    assert add(manifest=False, domain="x", config=config).task == told.split()[0]


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (typed("SEQ_CLS"), "text-classification"),
        (typed("SEQ_CLS"), "feature-extraction"),
        (typed("FEATURE_EXTRACTION"), "token-classification"),
        (typed("CAUSAL_LM"), "summarization"),
        (typed("CAUSAL_LM"), "text-classification"),
        (typed("SEQ_2_SEQ_LM"), "question-answering"),
        (typed(None), "token-classification"),
        (typed("SORTING"), "token-classification"),
        (noting("BertForSequenceClassification", None), "token-classification"),
    ],
)
def test_what_may_be_is_the_callers_word(add, config, task):
    assert add(manifest=False, domain="x", config=config, task=task).task == task


def test_what_another_catalogue_says_counts(registry, tmp_path):
    """Its owner may know better than the file does."""
    folder = make_checkpoint(tmp_path / "it", manifest=False, **typed("SEQ_CLS"))
    catalogued = replace(read_checkpoint(folder), catalogued_task="token-classification")
    version = registry.add(catalogued, name="it", domain="x", task="token-classification")
    other = Registry(tmp_path / "other.db")
    assert [outcome.state for outcome in import_registry(other, registry.path)] == ["taken"]
    assert other.resolve("it").task == version.task == "token-classification"
    pulled = Registry(tmp_path / "third.db")
    push(registry, "it", f"file://{tmp_path}")
    assert pull(pulled, f"file://{tmp_path}/it").version.task == "token-classification"
    with pytest.raises(RegistryConflictError, match="was trained for text-classification"):
        registry.add(catalogued, name="again", domain="x", task="question-answering")


@pytest.mark.parametrize("library", ["__main__", "diffusers.models.unets.unet_2d_condition", None, 3])
def test_a_body_of_nobody_knows_what(library):
    assert noted_task(noting("UNet2DConditionModel", None, library)) is None


@pytest.mark.parametrize("mapping", [None, "BertModel", ["BertModel"], {}, 1])
def test_no_class(mapping):
    assert noted_task({"auto_mapping": mapping}) is None


def test_a_type_counts_before_the_class(tmp_path):
    config = noting("BertModel", None) | {"task_type": "CAUSAL_LM"}
    assert noted_task(read_checkpoint(make_checkpoint(tmp_path / "it", manifest=False, **config)).config) == (
        "text-generation"
    )
    assert noted_task(config | {"task_type": "SEQ_2_SEQ_LM"}) is None
    assert noted_task(config | {"task_type": "SORTING"}) is None


@pytest.mark.parametrize(
    ("mapping", "saved", "task"),
    [
        ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", HEAD, "text-classification"),
        ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", HEAD, "token-classification"),
        ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES", HEAD, "question-answering"),
        ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", None, "fill-mask"),
        ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", None, "text-generation"),
        ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", None, None),
        ("MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES", HEAD, None),
        ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", HEAD, None),
    ],
)
def test_of_transformers_classes_none_is_for_another_task(mapping, saved, task):
    from transformers.models.auto import modeling_auto

    classes = [
        name
        for names in getattr(modeling_auto, mapping).values()
        for name in ([names] if isinstance(names, str) else names)
    ]
    found = {name: noted_task(noting(name, saved)) for name in classes}
    assert {name: told for name, told in found.items() if told not in (task, None)} == {}
    assert task is None or sum(told == task for told in found.values()) > 0.8 * len(found)
