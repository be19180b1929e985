from lorary.hub.base import BaseMatch, compare, fingerprint
from lorary.hub.manifest import BaseIdentity

ARCHITECTURE = {"model_type": "bert", "hidden_size": 4, "vocab_size": 10}
TENSORS = [("embeddings.word", (2, 2), b"12345678"), ("norm", (2,), b"1234")]


def test_the_fingerprint_ignores_the_order_and_other_fields():
    assert fingerprint(ARCHITECTURE, TENSORS) == fingerprint({**ARCHITECTURE, "dtype": "x"}, reversed(TENSORS))


def test_the_fingerprint_is_the_one_that_versions_were_registered_with():
    """A stored number: another way of writing it down would make every known base a stranger."""
    assert fingerprint(ARCHITECTURE, TENSORS) == "d45212dec17a6e17b584ef85f180a74470c27501ed15ed838e7d86bd10eb695a"


def test_the_fingerprint_knows_sizes_names_shapes_and_bytes():
    variants = [
        fingerprint(ARCHITECTURE, TENSORS),
        fingerprint({**ARCHITECTURE, "hidden_size": 8}, TENSORS),
        fingerprint(ARCHITECTURE, TENSORS[:1]),
        fingerprint(ARCHITECTURE, [("embeddings.word", (4, 1), b"12345678"), TENSORS[1]]),
        fingerprint(ARCHITECTURE, [("embeddings.word", (2, 2), b"12345679"), TENSORS[1]]),
        fingerprint(ARCHITECTURE, [("embeddings.position", (2, 2), b"12345678"), TENSORS[1]]),
    ]
    assert len(set(variants)) == len(variants)


def test_the_fingerprint_decides_and_the_rest_are_notes():
    backbone = BaseIdentity("org/base", fingerprint="f", tokenizer_sha256="t", chat_template_sha256="c")
    assert compare(backbone, backbone).same is True
    assert compare(backbone, backbone).notes == ()
    mirror = BaseIdentity("mirror/base", fingerprint="f", tokenizer_sha256="other", chat_template_sha256="other")
    match = compare(mirror, backbone)
    assert match.same is True
    assert len(match.notes) == 3
    silent = BaseIdentity("org/base", fingerprint="f")
    assert compare(silent, backbone).notes == compare(backbone, silent).notes == ()
    assert compare(BaseIdentity("org/base", fingerprint="g"), backbone).same is False


def test_an_unknown_base_is_said_to_be_unverified():
    backbone = BaseIdentity("org/base", fingerprint="f")
    for adapter in (None, BaseIdentity("org/base")):
        match = compare(adapter, backbone)
        assert match.same is None
        assert match.notes == ("base unverified: the adapter doesn't carry its base's fingerprint",)
    (note,) = compare(backbone, BaseIdentity("org/base")).notes  # of a base in float16 there is none
    assert note.startswith("base unverified: the base in memory")


def test_a_folder_and_its_name_in_an_adapter_s_files_are_the_same_base():
    ours = BaseIdentity("/data/models/llama", fingerprint="a" * 64)
    assert compare(BaseIdentity("llama", fingerprint="a" * 64), ours) == BaseMatch(True)
