"""How an adapter that sentence-transformers saved makes embeddings, read off its files, or why that isn't known."""

import json

import pytest
from huggingface_hub import constants

from checkpoints import make_checkpoint
from lorary.adapters.backbone.sources import find_checkpoint
from lorary.hub.checkpoint import ORIGIN_NAME, read_checkpoint
from lorary.hub.embedding import Embedding, OtherEmbeddingError, embedding_of, read_embedding
from lorary.hub.importing import import_folders
from lorary.hub.manifest import Pooling, Preprocessing
from lorary.hub.remote import pull

OLD = "sentence_transformers.models."
MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}


def module(kind, path=""):
    return {"idx": 0, "name": "0", "path": path, "type": f"{OLD}{kind}"}


@pytest.fixture
def saved(tmp_path):
    """An adapter beside files as sentence-transformers 2 writes them; further ones, or others in their place."""

    def saved(files=None, **options):
        folder = make_checkpoint(tmp_path / "like", manifest=False, **options)
        usual = {
            "modules.json": [module("Transformer"), module("Pooling", "1_Pooling"), module("Normalize", "2_Normalize")],
            "1_Pooling/config.json": MEAN,
            "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
        }
        for name, value in {**usual, **(files or {})}.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
        return folder

    return saved


def test_files_of_an_older_version_are_read(saved, registry):
    folder = saved()
    told = Embedding(Pooling("mean", True), 256)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.embedding == told
    assert (checkpoint.pooling, checkpoint.preprocessing) == (told.pooling, Preprocessing(max_length=256))
    (outcome,) = import_folders(registry, folder, domain="legal")
    kept = registry.checkpoint("like")
    assert (outcome.state, kept.digest, kept.embedding) == ("taken", checkpoint.digest, told)
    assert "json" not in outcome.note  # nothing was left


def test_what_comes_from_the_hub_makes_embeddings_as_a_folder_does(saved, ann, elsewhere, monkeypatch):
    folder = saved()
    told = Embedding(Pooling("mean", True), 256)
    ann.commit_folder("ann/like", folder, **{"1_Pooling/config.json": json.dumps(MEAN).encode()})
    version = pull(elsewhere, "ann/like", domain="legal").version
    assert elsewhere.checkpoint(version).embedding == told
    assert version.digest == read_checkpoint(folder).digest
    # Not catalogued, and once more without a network.
    for _ in range(2):
        assert find_checkpoint("hf://ann/like", elsewhere).checkpoint.embedding == told
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_the_task_is_theirs_where_peft_noted_none(saved, registry):
    (outcome,) = import_folders(registry, saved(task_type=None), domain="legal")
    assert registry.resolve(outcome.reference).task == "feature-extraction"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"modules.json": "["}, None),
        ({"modules.json": "{}"}, None),
        ({"config_sentence_transformers.json": {"model_type": "CrossEncoder"}}, None),
        ({"modules.json": [module("Transformer"), module("Dropout", "1"), module("Pooling", "1_Pooling")]},
         Embedding(Pooling("mean"), 256)),
        ({"1_Pooling/config.json": {"pooling_mode": "lasttoken"}, "sentence_bert_config.json": "{}"},
         Embedding(Pooling("last", True))),
        ({"sentence_bert_config.json": "{}", "tokenizer_config.json": {"model_max_length": 99}},
         Embedding(Pooling("mean", True), 99)),
        ({"sentence_bert_config.json": {"do_lower_case": True}, "tokenizer_config.json": {"do_lower_case": True}},
         Embedding(Pooling("mean", True))),
        ({"config_sentence_transformers.json": {"prompts": {"a": "x: "}, "default_prompt_name": None}},
         Embedding(Pooling("mean", True), 256)),
        ({"config_sentence_transformers.json": {"prompts": {"a": "x: "}, "default_prompt_name": "a"}},
         Embedding(Pooling("mean", True), 256, "x: ")),
    ],
)  # fmt: skip
def test_what_is_known(saved, files, expected):
    assert read_embedding(saved(files)) == expected


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"1_Pooling/config.json": {"pooling_mode": ["cls", "max"]}}, "it pools by cls and max"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "it pools by max"),
        ({"1_Pooling/config.json": {"pooling_mode": {"a": 1}}}, "it pools by"),
        ({"1_Pooling/config.json": "["}, "it pools by nothing"),
        ({"modules.json": []}, "its first module is none"),
        ({"modules.json": [module("Transformer", "0_Transformer")]}, "its first module is Transformer in 0_Trans"),
        ({"modules.json": [module("Transformer"), module("SpladePooling", "1")]}, "its second module is SpladePooling"),
        ({"modules.json": [module("Transformer"), module("Pooling", "1_Pooling"), module("Dense", "2_Dense")]},
         "its modules go on with Dense"),
        ({"modules.json": [3]}, "isn't what sentence-transformers writes"),
        ({"sentence_bert_config.json": {"do_lower_case": True}}, "lowers a text's letters"),
        ({"sentence_bert_config.json": {"transformer_task": "fill-mask"}}, "its transformer_task is 'fill-mask'"),
        ({"config_sentence_transformers.json": {"prompts": {"a": 3}, "default_prompt_name": "a"}}, "is no text"),
        ({"config_sentence_transformers.json": {"prompts": {"a": "x"}, "default_prompt_name": "a"},
          "1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": False}}, "leaves its prompt out"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_told_at_the_import(saved, registry, files, why):
    folder = saved(files)
    with pytest.raises(OtherEmbeddingError, match=why):
        read_embedding(folder)
    assert (read_checkpoint(folder).embedding, read_checkpoint(folder).pooling) == (None, None)
    (outcome,) = import_folders(registry, folder, domain="legal", task="feature-extraction")
    assert (outcome.state, registry.checkpoint("like").embedding) == ("taken", None)
    assert why in outcome.note
    assert "it gives every token's state" in outcome.note


def test_a_pooling_s_folder_is_looked_for_beside_the_adapter_alone(saved, tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    modules = [module("Transformer"), module("Pooling", "../1_Pooling")]
    assert read_embedding(saved({"modules.json": modules})).pooling == Pooling("mean")
    (tmp_path / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    (saved({}) / "linked").symlink_to(tmp_path / "1_Pooling")
    for place in ("..", "linked", "x" * 999):
        with pytest.raises(OtherEmbeddingError, match="it pools by nothing"):
            read_embedding(saved({"modules.json": [module("Transformer"), module("Pooling", place)]}))


@pytest.mark.parametrize(
    "files",
    [
        {"1_Pooling/config.json": {"pooling_mode": ["cls", "m" * 9999]}},
        *({"modules.json": [*modules, module("D" * 9999)]} for modules in ([], [module("Transformer")])),
        {"modules.json": [module("Transformer"), module("Pooling", "1_Pooling"), module("D" * 9999)]},
    ],
)
def test_what_is_told_of_a_stranger_s_files_is_short(saved, files):
    with pytest.raises(OtherEmbeddingError) as caught:
        read_embedding(saved(files))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "told", [None, [], {}, {"pooling": "max"}, {"pooling": ["mean"]}, {"pooling": "mean", "prefix": 3}]
)
def test_a_stranger_s_origin_that_tells_nonsense_tells_nothing(saved, told):
    folder = saved({ORIGIN_NAME: {"embedding": told}})
    assert read_checkpoint(folder).embedding is None


def test_what_it_tells_is_read_back():
    for embedding in (Embedding(Pooling("cls")), Embedding(Pooling("last", True), 9, "x: ")):
        assert embedding_of(embedding.told()) == embedding
    assert embedding_of({"pooling": "mean", "max_length": -3}) == Embedding(Pooling("mean"))
