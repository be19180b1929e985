"""What PEFT notes of an adapter's task: a type that it was told, else the class that was trained."""

import pytest

from checkpoints import make_checkpoint
from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.errors import UsageError
from lorary.hub.noted_task import noted_task

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
