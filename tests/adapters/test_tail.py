"""The probe's short way: the end of a pass, replayed from the bare one, shows what the whole pass shows."""

import pytest
import torch
import transformers

from lorary.adapters import Backbone
from lorary.adapters.proving.proof import probe_row
from lorary.adapters.running.tail import Tails
from lorary.hub.errors import NoEffectError
from tiny import make_adapter, make_base
from variants import change, make_variants

FAMILIES = {
    "bert": "token-classification", "distilbert": "text-classification", "gpt2": "text-generation",
    "llama": "text-generation", "tied": "text-generation", "gemma3": "text-generation", "t5": "seq2seq",
}  # fmt: skip


def open_base(bases, family, **settings):
    return Backbone.from_pretrained(str(bases(family)), **settings)


def tails_of(backbone):
    return Tails(backbone._inference, probe_row((), backbone.body.get_input_embeddings().weight.shape[0]))


def differs(backbone, name):
    adapters = backbone._residency.resolve([name])
    with backbone._residency.lease(adapters) as routing:
        return tails_of(backbone).differs(routing, adapters[0].content.needs)


def base_calls(backbone, load):
    """The wrapped modules that ``load`` runs, by path."""
    called = []
    layers = {path: layer for path, layer in backbone.model.named_modules() if path.endswith("base_layer")}
    handles = [layer.register_forward_hook(lambda *_, path=path: called.append(path)) for path, layer in layers.items()]
    load()
    for handle in handles:
        handle.remove()
    return called


ARITHMETIC = [{"dtype": "bfloat16"}, {"quantization": "nf4"}, {"quantization": "int8"}]


@pytest.mark.parametrize(
    ("family", "settings"), [*((family, {}) for family in FAMILIES), *(("llama", settings) for settings in ARITHMETIC)]
)
def test_a_sound_adapter_is_shown_to_act_without_running_the_backbone(bases, tmp_path, family, settings):
    first = make_adapter(bases(family), tmp_path / "first", task=FAMILIES[family])
    variants = make_variants(first, ["a", "b"])
    backbone = open_base(bases, family, **settings)
    backbone.load(variants["a"])
    assert differs(backbone, "a")
    sites = set(backbone._residency.arena.layout.sites)
    last = list(tails_of(backbone)._record(backbone._residency.arena.layout).sites)[-1]
    head_of = FAMILIES[family].endswith("classification")
    called = base_calls(backbone, lambda: backbone.load(variants["b"]))
    if not head_of:  # a head is settled by passes of its own
        assert not [path for path in called if path.removesuffix(".base_layer") in sites - {last}]


def test_a_model_that_adds_a_bias_to_all_of_its_logits_is_probed_too(tmp_path):
    """BART and its kin do so after the output layer, of which a large vocabulary's probe takes a part alone."""
    base = make_base("bart", tmp_path / "bart", vocab_size=300)
    first = make_adapter(base, tmp_path / "first", task="seq2seq")
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(first, "a")
    assert differs(backbone, "a")


def test_a_model_that_looks_into_its_output_layer_is_probed_too(tmp_path):
    """Mamba 2, Falcon Mamba and xLSTM turn their states into the dtype of the output layer's weight."""
    config = transformers.Mamba2Config(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4, num_heads=8, head_dim=8, n_groups=1,
        chunk_size=4,
    )  # fmt: skip
    transformers.Mamba2ForCausalLM(config).save_pretrained(tmp_path / "base")
    folder = make_adapter(tmp_path / "base", tmp_path / "a", task="text-generation")
    backbone = Backbone.from_pretrained(str(tmp_path / "base"))
    backbone.load(folder, "a")
    assert differs(backbone, "a")


def test_an_adapter_that_acts_elsewhere_alone_runs_whole(bases, tmp_path):
    first = make_adapter(bases("llama"), tmp_path / "first", task="text-generation")
    variants = make_variants(first, ["a", "b"])

    def silence_the_last(tensors):
        tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"].zero_()

    change(variants["b"], silence_the_last)
    backbone = open_base(bases, "llama")
    backbone.load(variants["a"])
    called = base_calls(backbone, lambda: backbone.load(variants["b"]))
    assert "model.layers.0.self_attn.q_proj.base_layer" in called
    assert not differs(backbone, "b")


def test_one_too_slight_for_the_dtype_is_refused(bases, tmp_path):
    first = make_adapter(bases("llama"), tmp_path / "first", task="text-generation")
    variants = make_variants(first, ["a", "b"])
    change(variants["b"], lambda tensors: [tensor.mul_(1e-12) for tensor in tensors.values()])
    backbone = open_base(bases, "llama", dtype="bfloat16")
    backbone.load(variants["a"])
    with pytest.raises(NoEffectError, match="answers the same with it as without"):
        backbone.load(variants["b"])


def test_one_that_overflows_before_the_last_module_is_refused(bases, tmp_path):
    """The last module's part is sound; only a whole pass comes upon the first one's."""
    first = make_adapter(bases("llama"), tmp_path / "first", task="text-generation")
    variants = make_variants(first, ["a", "b"])

    def blow_up(tensors):
        for factor in "AB":
            tensors[f"base_model.model.model.layers.0.self_attn.o_proj.lora_{factor}.weight"].fill_(1e30)

    change(variants["b"], blow_up)
    backbone = open_base(bases, "llama")
    backbone.load(variants["a"])
    with pytest.raises(NoEffectError, match="NaN or infinity"):
        backbone.load(variants["b"])


def test_a_model_whose_blocks_hand_things_on_beside_their_outputs_runs_whole(bases, tmp_path):
    """A replay that doesn't give the bare model's answers shows nothing, so it isn't asked."""
    first = make_adapter(bases("llama"), tmp_path / "first", task="text-generation")
    variants = make_variants(first, ["a", "b"])
    backbone = open_base(bases, "llama")
    block, last = backbone.body.layers[0], backbone.body.layers[1]
    seen = []
    block.register_forward_hook(lambda *_: seen.append(1))
    last.register_forward_hook(lambda module, args, output: output + (seen.pop() if seen else 0))
    backbone.load(variants["a"])
    assert not differs(backbone, "a")
    assert "model.layers.0.self_attn.q_proj.base_layer" in base_calls(backbone, lambda: backbone.load(variants["b"]))


def test_a_compiled_backbone_is_probed_eagerly(bases, tmp_path):
    first = make_adapter(bases("llama"), tmp_path / "first", task="text-generation")
    variants = make_variants(first, ["a", "b"])
    backbone = open_base(bases, "llama")
    backbone.load(variants["a"])
    backbone.compile(backend="eager")
    torch._dynamo.utils.counters.clear()
    backbone.load(variants["b"])
    assert differs(backbone, "b")
    assert not torch._dynamo.utils.counters["stats"]
