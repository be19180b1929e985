"""Exporting: whole folders, archives that are the same each time, and vLLM's command."""

import json
import os
import shlex
import tarfile

import pytest

from checkpoints import lora_tensors, make_checkpoint, rot, write_safetensors
from lorary.hub import export
from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.cli.main import main
from lorary.hub.errors import ChangedFilesError, OutputError, UnsupportedAdapterError
from lorary.hub.export import export_folder, export_tar, vllm_command


@pytest.fixture
def version(add):
    return add(name="tone")


def test_a_folder_is_the_version_with_its_card(registry, version, tmp_path):
    target = export_folder(version, registry.checkpoint(version), tmp_path / "new" / "tone")
    assert read_checkpoint(target).digest == version.digest
    assert {path.name for path in target.iterdir()} == {*version.files, "README.md"}
    assert (target / "README.md").read_text().startswith("---\nbase_model: org/tiny\n")
    assert all(os.access(path, os.W_OK) for path in target.iterdir())
    assert [path.name for path in target.parent.iterdir()] == ["tone"]
    assert registry.add(target, name="tone") == version


def test_a_foreign_adapter_s_own_card_stays(registry, tmp_path):
    folder = make_checkpoint(tmp_path / "foreign", manifest=False)
    (folder / "README.md").write_text("theirs")
    version = registry.add(folder, name="foreign", domain="x")
    target = export_folder(version, registry.checkpoint(version), tmp_path / "out")
    assert (target / "README.md").read_text() == "theirs"


def test_peft_s_empty_form_is_replaced_by_the_card(registry, tmp_path):
    folder = make_checkpoint(tmp_path / "foreign", manifest=False, base_model_name_or_path="/data/client/base")
    (folder / "README.md").write_text("base_model: /data/client/base\n" + "[More Information Needed]\n" * 40)
    version = registry.add(folder, name="foreign", domain="x")
    checkpoint = registry.checkpoint(version)
    assert b"client" not in checkpoint.files["README.md"].read_bytes()
    target = export_folder(version, checkpoint, tmp_path / "out")
    assert "It was made outside lorary" in (target / "README.md").read_text()
    assert b"It was made outside lorary" in export_tar(version, checkpoint, tmp_path / "a.tar").read_bytes()


def test_a_folder_that_holds_something_is_refused(registry, version, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("x")
    with pytest.raises(OutputError, match="isn't empty"):
        export_folder(version, registry.checkpoint(version), tmp_path / "taken")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="no folder"):
        export_folder(version, registry.checkpoint(version), tmp_path / "link")
    (tmp_path / "empty").mkdir()
    assert export_folder(version, registry.checkpoint(version), tmp_path / "empty").is_dir()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "lorary.json"])
@pytest.mark.parametrize("write", [export_folder, export_tar])
def test_rotten_files_are_not_handed_on(registry, version, tmp_path, write, name):
    checkpoint = registry.checkpoint(version)
    rot(checkpoint.files[name])
    with pytest.raises(ChangedFilesError, match=rf"tone@1: {name} isn't what was registered.*`lorary verify`"):
        write(version, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_full_disk_leaves_nothing(registry, version, tmp_path, monkeypatch, form):
    def full(*_):
        raise OSError(28, "No space left on device")

    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(export.shutil, "copyfileobj", full)
    monkeypatch.setattr(export.tarfile.TarFile, "addfile", full)
    write = {"folder": export_folder, "tar": export_tar}[form]
    with pytest.raises(OutputError, match="No space left"):
        write(version, registry.checkpoint(version), place / "tone.tar")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_an_archive_is_the_same_each_time_and_unpacks_to_the_version(registry, version, tmp_path, name):
    checkpoint = registry.checkpoint(version)
    first = export_tar(version, checkpoint, tmp_path / "1" / name).read_bytes()
    assert export_tar(version, checkpoint, tmp_path / "2" / name).read_bytes() == first
    with tarfile.open(tmp_path / "1" / name) as archive:
        assert all(entry.isfile() and entry.name.startswith("tone-1/") for entry in archive.getmembers())
        assert {(entry.mtime, entry.uid, entry.uname) for entry in archive.getmembers()} == {(0, 0, "")}
        # Debian 12's Python 3.11.2 has no filters yet.
        archive.extractall(tmp_path / "out", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    assert read_checkpoint(tmp_path / "out" / "tone-1").digest == version.digest
    with pytest.raises(OutputError, match="is there already"):
        export_tar(version, checkpoint, tmp_path / "1" / name)


def test_vllm_s_command(registry, tmp_path):
    folder = make_checkpoint(tmp_path / "a", r=12, task_type="CAUSAL_LM", manifest=False)
    version = registry.add(folder, name="story", domain="x")
    command = vllm_command(version, registry.checkpoint(version), tmp_path / "my folder")
    assert shlex.split(command) == [
        "vllm", "serve", "org/tiny", "--enable-lora", "--lora-modules", f"story={tmp_path}/my folder",
        "--max-lora-rank", "16",
    ]  # fmt: skip


def test_vllm_has_room_for_the_largest_rank_of_a_pattern(registry, tmp_path):
    patterns = {"rank_pattern": {"q_proj": 40, "v_proj": 2}, "alpha_pattern": {"q_proj": 3}}
    folder = make_checkpoint(tmp_path / "a", task_type="CAUSAL_LM", manifest=False, init_lora_weights="eva", **patterns)
    version = registry.add(folder, name="story", domain="x")
    assert vllm_command(version, registry.checkpoint(version), tmp_path).endswith("--max-lora-rank 64")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["score", "lm_head"]}, "lm_head"),
        ({"modules_to_save": [["score"]]}, "modules_to_save"),
        ({"rank_pattern": {"q": 1000}}, "1000"),
        ({"rank_pattern": ["q"]}, "its rank is"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"use_qalora": True}, "use_qalora"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"init_lora_weights": "PiSSA"}, "init_lora_weights is 'PiSSA'"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 1024}, "1024"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "an encoder with a decoder"),
    ],
)
def test_what_vllm_refuses_is_refused_by_name_and_nothing_is_written(registry, tmp_path, capsys, config, named):
    version = registry.add(
        make_checkpoint(tmp_path / "a", manifest=False, **config), name="a", domain="x", task="summarization"
    )
    with pytest.raises(UnsupportedAdapterError, match=named):
        vllm_command(version, registry.checkpoint(version), tmp_path)
    assert main(["export", "a", str(tmp_path / "out"), "--vllm", "--registry", str(registry.path)]) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["bert", "roberta"])
def test_an_encoder_is_refused_for_vllm_by_the_names_of_its_tensors(registry, tmp_path, prefix):
    folder = make_checkpoint(tmp_path / "a", manifest=False)
    tensors = {name.replace("layer.query", f"{prefix}.encoder.layer.0.attention.self.query"): value
               for name, value in lora_tensors().items()}  # fmt: skip
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    version = registry.add(folder, name="a", domain="x")
    told = rf"an encoder \({prefix}\), for which vLLM has LoRA in some tasks or none; lorary itself serves it"
    with pytest.raises(UnsupportedAdapterError, match=told):
        vllm_command(version, registry.checkpoint(version), tmp_path)


@pytest.mark.parametrize(("kind", "refused"), [("modernbert", True), ("bert", True), ("llama", False), (7, False)])
@pytest.mark.parametrize("cached", [True, False])
def test_an_encoder_is_refused_for_vllm_by_its_config(registry, version, tmp_path, monkeypatch, kind, refused, cached):
    folder = tmp_path / "hub" / "models--org--base" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    base = "org/base" if cached else str(folder)
    checkpoint = registry.checkpoint(version)
    if refused:
        with pytest.raises(UnsupportedAdapterError, match=f"encoder .{kind}"):
            vllm_command(version, checkpoint, tmp_path, base)
    else:
        assert base in vllm_command(version, checkpoint, tmp_path, base)


@pytest.mark.parametrize("base", ["not an id at all!", "a/b/c", "/nowhere", "org/unknown", "~nobody-here/x", "x" * 300])
def test_a_base_that_is_not_at_hand_is_no_reason_against_vllm(registry, version, tmp_path, base):
    assert shlex.quote(base) in vllm_command(version, registry.checkpoint(version), tmp_path, base)


def test_the_command(registry, version, tmp_path, capsys):
    where = ["--registry", str(registry.path)]
    assert main(["export", "tone", str(tmp_path / "a"), "--tar", str(tmp_path / "a.tar"), "--vllm", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"tone@1: {tmp_path}/a", f"tone@1: {tmp_path}/a.tar"]
    assert lines[2].startswith("vllm serve org/tiny")
    assert main(["export", "tone", str(tmp_path / "c"), "--vllm", "--base", "org/other", *where]) == 0
    assert "vllm serve org/other" in capsys.readouterr().out
    assert main(["export", "tone", str(tmp_path / "d"), "--base", "org/other", *where]) == 2
    assert main(["export", "tone", *where]) == 2
    assert main(["export", "tone", "--vllm", "--tar", str(tmp_path / "b.tar"), *where]) == 2
    assert main(["export", "tone", "--tar", str(tmp_path / "b.zip"), *where]) == 2
    assert main(["export", "nothing", str(tmp_path / "b"), *where]) == 1
    assert main(["export", "tone", str(tmp_path / "a"), *where]) == 1
