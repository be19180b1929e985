import json

import pytest

from checkpoints import make_manifest
from lorary.hub.errors import CheckpointError
from lorary.hub.manifest import Answering, Filling, Generation, Numerics, Pooling, Preprocessing, Prompt
from lorary.hub.manifest_reading import parse_manifest


def test_a_manifest_survives_its_file(tmp_path):
    manifest = make_manifest(
        prompt=Prompt("instruction", "Frage: {prompt}\nAntwort:"),
        numerics=Numerics("nf4", "bfloat16", "cuda"),
        golden_rows=((1, 2), (3,)),
        provenance={"seed": 1, "rows": {"train": 10}},
        labels=("größer", "kleiner"),
    )
    assert parse_manifest(manifest.write(tmp_path).read_text(encoding="utf-8"), "x") == manifest


@pytest.mark.parametrize(
    ("fields", "since"),
    [
        ({"pooling": Pooling("cls", normalize=True)}, 2),
        ({"preprocessing": Preprocessing(max_length=384, stride=128)}, 2),
        ({"preprocessing": Preprocessing(source_lang="en_XX", target_lang="de_DE")}, 3),
        ({"answering": Answering(30, impossible=True)}, 3),
        ({"generation": Generation(64, num_beams=4), "pooling": Pooling()}, 3),
        ({"thresholds": (0.25, 0.5)}, 4),
        ({"added_tokens": ("<kbd>", "größer")}, 4),
        ({"filling": Filling("mask", 16)}, 5),
    ],
    ids=str,
)
def test_what_came_with_a_later_format_is_written_only_where_it_is_used(fields, since):
    plain, newer = make_manifest(), make_manifest(**fields)
    assert parse_manifest(newer.to_json(), "x") == newer
    assert json.loads(newer.to_json())["format"] == since
    assert newer.semantic() != plain.semantic()
    old = json.loads(plain.to_json())
    assert old["format"] == 1
    assert "pooling" not in old
    assert not {"generation", "answering", "thresholds", "added_tokens", "filling"} & old.keys()
    assert old["preprocessing"].keys() == {"columns", "max_length", "prefix"}
    assert plain.semantic().keys() == {
        "task", "labels", "problem_type", "preprocessing", "prompt", "base_fingerprint",
    }  # fmt: skip
    assert plain.semantic()["preprocessing"].keys() == {"columns", "max_length", "prefix"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 7}, "upgrade lorary"),
        ({"format": "1"}, "integer 'format'"),
        ({"format": True}, "integer 'format'"),
        ({"task": None}, "expected a text"),
        ({"base": None}, "expected an object"),
        ({"base": {"commit": "x"}}, "id"),
        ({"base": {"id": ["x"]}}, "id: expected str"),
        ({"base": {"id": "x", "fingerprint": 3}}, "fingerprint: expected str"),
        ({"base": {"id": "x", "unheard_of": 3}}, "unheard_of"),
        ({"domain": 3}, "domain: expected str"),
        ({"labels": "abc"}, "labels: expected list"),
        ({"labels": ["a", 1]}, "expected a text"),
        ({"preprocessing": {"columns": {"text": 1}}}, "columns.text"),
        ({"preprocessing": {"max_length": True}}, "max_length: expected int"),
        ({"preprocessing": {"prefix": None}}, "prefix: expected str"),
        ({"preprocessing": {"stride": "128"}}, "stride: expected int"),
        ({"pooling": {"mode": "max"}}, "expected mean, cls, last"),
        ({"pooling": {"normalize": 1}}, "normalize: expected bool"),
        ({"preprocessing": {"source_lang": 1}}, "source_lang: expected str"),
        ({"task": "sentiment"}, "task: expected text-classification, .*found 'sentiment'"),
        ({"problem_type": "several"}, "problem_type: expected single_label_classification, .*found 'several'"),
        ({"preprocessing": {"max_length": 0}}, "max_length: expected a number from 1 to 1000000, found 0"),
        ({"preprocessing": {"max_length": 2**70}}, "max_length: expected a number from 1"),
        ({"preprocessing": {"stride": -1}}, "stride: expected a number from 0"),
        ({"answering": {"max_tokens": 0}}, "max_tokens: expected a number from 1"),
        ({"generation": {"max_new_tokens": 0}}, "max_new_tokens: expected a number from 1"),
        ({"generation": {"max_new_tokens": 10**12}}, "max_new_tokens: expected a number from 1 to 1000000, found 10"),
        ({"generation": {"max_new_tokens": "5"}}, "max_new_tokens: expected int, found '5'"),
        ({"generation": {"max_new_tokens": 5, "num_beams": 101}}, "num_beams: expected a number from 1 to 100"),
        ({"generation": {"max_new_tokens": 5, "length_penalty": 1e308}}, "length_penalty: expected a number from -100"),
        ({"generation": {"max_new_tokens": 5, "no_repeat_ngram_size": -1}}, "no_repeat_ngram_size: expected a number"),
        ({"generation": {"max_new_tokens": 1.5}}, "max_new_tokens: expected int"),
        ({"generation": {"num_beams": 2}}, "max_new_tokens"),
        ({"thresholds": [0.5]}, "a number for each of 2 labels"),
        ({"thresholds": [0.5, 1]}, "numbers between 0 and 1, found 1"),
        ({"thresholds": {"a": 0.5}}, "a number for each of 2 labels"),
        ({"filling": {"gaps": "holes", "longest": 3}}, "gaps: expected sentinels, mask"),
        ({"filling": {"gaps": "mask", "longest": 0}}, "longest: expected a number from 1"),
        ({"filling": {"gaps": "mask", "longest": 10**12}}, "longest: expected a number from 1 to 1000"),
        ({"filling": {"gaps": "mask", "longest": True}}, "longest: expected int"),
        ({"added_tokens": "<kbd>"}, "added_tokens: expected list"),
        ({"added_tokens": ["<kbd>", ""]}, "expected a text, found ''"),
        ({"answering": {"impossible": True}}, "max_tokens"),
        ({"answering": {"max_tokens": "30"}}, "max_tokens: expected int"),
        ({"prompt": {"format": 1}}, "format: expected str"),
        ({"prompt": {"format": "alpaca"}}, "format: expected plain, instruction, chat, found 'alpaca'"),
        ({"prompt": {"template": "Answer:"}}, "template: expected a text with {prompt} in it once"),
        ({"prompt": {"template": "{prompt} {prompt}"}}, "template: expected a text with {prompt} in it once"),
        ({"numerics": {"quantization": None}}, "quantization: expected str"),
        ({"golden_rows": [[1, -1]]}, "token ids"),
        ({"golden_rows": [[True]]}, "token ids"),
        ({"golden_rows": [3]}, "token ids"),
        ({"provenance": "x"}, "provenance: expected dict"),
        ({"provenance": [[1, 2], ["a", 3]]}, "provenance: expected dict"),  # pairs, to Python, would do for one
    ],
)
def test_a_wrong_field_is_named(changes, message):
    raw = {**json.loads(make_manifest().to_json()), **changes}
    with pytest.raises(CheckpointError, match=rf"from\.json.*{message}"):
        parse_manifest(json.dumps(raw), "from.json")


def test_a_missing_field_is_named():
    raw = json.loads(make_manifest().to_json())
    del raw["task"]
    with pytest.raises(CheckpointError, match="no 'task'"):
        parse_manifest(json.dumps(raw), "from.json")


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"format": 1, "task": "\\udc00"}'])
def test_what_is_no_manifest(text):
    with pytest.raises(CheckpointError, match=r"from\.json"):
        parse_manifest(text, "from.json")
