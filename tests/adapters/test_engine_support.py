"""What an engine can't serve, it says by name: models, attentions, versions, and models that answer otherwise in it."""

import ast
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

from lorary.adapters import Backbone
from lorary.adapters.engine import Request, compatibility
from lorary.adapters.engine.compatibility import Comparison
from lorary.adapters.engine.decoding import Decoding
from lorary.hub.errors import EngineUnsupportedError, RequestTooLongError, UntestedVersionWarning, UsageError
from tiny import make_base, make_tokenizer

pytestmark = pytest.mark.usefixtures("frozen_imports")
SMALL = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 16}


def test_the_installed_version_is_one_that_was_tested(bases, recwarn):
    with Backbone.from_pretrained(str(bases("llama"))).engine(**SMALL):
        pass
    assert not [warning for warning in recwarn if warning.category is UntestedVersionWarning]


@pytest.mark.parametrize("version", ["5.22.1", "5.24.0", "6.0.0.dev0"])
def test_another_version_says_so(bases, monkeypatch, version):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    # By way of the module that reads it: transformers puts another object in its own place while it is imported.
    monkeypatch.setattr(compatibility.transformers, "__version__", version)
    with pytest.warns(UntestedVersionWarning, match=f"5.23 up to but not.* 5.24, this is {version}") as told:
        backbone.engine(**SMALL).close()
    places = [warning.filename for warning in told if warning.category is UntestedVersionWarning]
    assert places == [__file__]  # where it is opened, not where that is noticed


def test_what_the_engine_takes_from_transformers_is_looked_for_beforehand():
    imported, settings, overridden = set(), set(), set()
    for path in Path(compatibility.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers.generation"):
                imported |= {(node.module, alias.name) for alias in node.names}
            if isinstance(node, ast.ClassDef):
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                overridden |= {(base.id, name) for base in node.bases if isinstance(base, ast.Name) for name in methods}
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "ContinuousBatchingConfig":
                settings |= {keyword.arg for keyword in node.keywords}
    assert imported
    assert imported <= {(module, name) for module, names in compatibility._SEAMS.items() for name in names}
    parts = {name: getattr(import_module(module), name) for module, name in imported}
    theirs = {(base, name) for base, name in overridden if name[0] != "_" and hasattr(parts.get(base), name)}
    assert {base for base, _ in theirs} == {"FIFOScheduler", "OutputRouter"}
    assert theirs <= {(base, name) for base, names in compatibility._MEMBERS.items() for name in names}
    assert settings == set(compatibility._MEMBERS["ContinuousBatchingConfig"])


def test_a_version_that_lacks_a_module_is_refused(bases, monkeypatch):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    module = "transformers.generation.continuous_batching.scheduler"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineUnsupportedError, match=f"transformers has no {module}; the engine was tested with"):
        backbone.engine(**SMALL)


def test_a_version_that_lacks_a_seam_is_refused(bases, monkeypatch):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    from transformers.generation import configuration_utils
    from transformers.generation.continuous_batching import continuous_api, scheduler

    monkeypatch.delattr(scheduler, "SCHEDULER_MAPPING")
    with pytest.raises(EngineUnsupportedError, match="no SCHEDULER_MAPPING; the engine was tested with"):
        backbone.engine(**SMALL)
    monkeypatch.undo()
    monkeypatch.delattr(continuous_api.OutputRouter, "fail_and_deliver")
    with pytest.raises(EngineUnsupportedError, match=r"no OutputRouter\.fail_and_deliver"):
        backbone.engine(**SMALL)
    monkeypatch.undo()
    monkeypatch.delattr(configuration_utils.ContinuousBatchingConfig, "auto_switch_to_flash")
    with pytest.raises(EngineUnsupportedError, match=r"no ContinuousBatchingConfig\.auto_switch_to_flash"):
        backbone.engine(**SMALL)


@pytest.mark.parametrize(
    ("family", "message"), [("bert", "has no language-modelling head"), ("t5", "is an encoder-decoder")]
)
def test_models_that_continuous_batching_is_not_for(bases, family, message):
    with pytest.raises(EngineUnsupportedError, match=message):
        Backbone.from_pretrained(str(bases(family))).engine(**SMALL)


def test_an_attention_that_reads_no_paged_cache(bases):
    model = AutoModelForCausalLM.from_pretrained(bases("llama"), attn_implementation="eager")
    with pytest.raises(EngineUnsupportedError, match=r"'eager'.*attn_implementation='sdpa'"):
        Backbone.from_model(model, make_tokenizer("llama")).engine(**SMALL)
    assert model.config._attn_implementation == "eager"


def test_a_backbone_without_a_tokenizer(bases):
    model = AutoModelForCausalLM.from_pretrained(bases("llama"))
    with pytest.raises(EngineUnsupportedError, match="without a tokenizer"):
        Backbone.from_model(model, None).engine(**SMALL)


def test_a_model_without_pages_for_its_layers():
    """Mamba keeps a state, not keys and values."""
    config = MambaConfig(vocab_size=44, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = MambaForCausalLM(config)
    before = set(threading.enumerate())
    with pytest.raises(EngineUnsupportedError, match=r"MambaForCausalLM computes its attention with 'eager'.*no other"):
        Backbone.from_model(model, make_tokenizer("llama")).engine(**SMALL)
    assert not set(threading.enumerate()) - before


def without_pages(forward, *args, cache, **kwargs):
    """An attention that lets the cache be, as one from outside transformers does that knows nothing of pages."""
    return forward(*args, **kwargs)


def without_mask(forward, *args, attention_mask, **kwargs):
    """An attention that sees every request of the step, and nothing that looks amiss."""
    return forward(*args, attention_mask=None, **kwargs)


@pytest.mark.parametrize(
    ("attention", "message"), [(without_pages, "fails in continuous batching"), (without_mask, "answers otherwise")]
)
def test_a_model_that_is_not_itself_in_a_packed_row(bases, attention, message):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    before = set(threading.enumerate())
    for layer in backbone.body.layers:
        original = layer.self_attn.forward

        def forward(*args, original=original, **kwargs):
            return attention(original, *args, **kwargs) if "cache" in kwargs else original(*args, **kwargs)

        layer.self_attn.forward = forward
    with pytest.raises(EngineUnsupportedError, match=f"LlamaForCausalLM {message}"):
        backbone.engine(**SMALL)
    assert not set(threading.enumerate()) - before


@pytest.fixture
def compared(bases):
    """A function: what the comparison says of the loop's logits, made from the model's own for the same tokens."""
    inference = Backbone.from_pretrained(str(bases("llama")))._inference
    request = Request("one", [7, 8], None, Decoding(1, (), (), None), inference.tokenizer, None)
    request._tokens.append(9)

    def compare(*changes):
        comparison = Comparison(inference)
        for change in changes:
            row = inference.run([7, 8, 9], None).logits[0, -1].clone()
            comparison.note(request, change(row))
            row.zero_()  # the loop writes its next step there
        comparison.demand_equal()

    return compare


def test_logits_are_the_models_own_but_for_rounding(compared):
    compared(lambda row: row, lambda row: row + 0.04 * row.abs().max(), lambda row: row - 0.04 * row.abs().max())


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row + 0.06 * row.abs().max(),
        lambda row: row - 0.06 * row.abs().max(),
        lambda row: row * float("nan"),
        lambda row: row.flip(0),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_logits_that_differ_in_any_of_the_rows_are_refused(compared, change, place):
    changes = [lambda row: row] * 3
    changes[place] = change
    with pytest.raises(EngineUnsupportedError, match="LlamaForCausalLM answers otherwise in continuous batching"):
        compared(*changes)


def test_a_head_of_zeros_answers_as_it_does_alone(bases):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    torch.nn.init.zeros_(backbone.model.lm_head.weight)
    backbone.engine(**SMALL).close()


def test_a_backbone_on_several_devices(bases):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.model.lm_head.to("meta")
    with pytest.raises(EngineUnsupportedError, match="LlamaForCausalLM is spread over cpu, meta"):
        backbone.engine(**SMALL)


@pytest.mark.parametrize("attention", ["flash_attention_2", "kernels-community/flash-attn2", "sdpa"])
def test_attentions_that_read_a_paged_cache(bases, attention):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.model.config._attn_implementation_internal = attention
    assert backbone.model.config._attn_implementation == attention
    compatibility.check_backbone(backbone._inference)


def test_a_bfloat16_backbone_opens(bases, kinds):
    backbone = Backbone.from_pretrained(str(bases("llama")), dtype="bfloat16")
    backbone.load(kinds("small"), "a")
    with backbone.engine(**SMALL) as engine:
        requests = [engine.submit("story", name, max_new_tokens=5) for name in ("a", None)]
        assert all(request.result(10).tokens for request in requests)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_frequencies_that_turn_with_the_longest_request(tmp_path, family):
    """Longrope has other frequencies beyond its first length, for everybody in the step."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope["original_max_position_embeddings"] = 16
    changes = {"rope_parameters": rope}
    if family == "gemma3":  # each kind of its layers has frequencies of its own
        own = {"full_attention": rope, "sliding_attention": rope | {"original_max_position_embeddings": 32}}
        changes = {"rope_parameters": own, "layer_types": list(own)}
    base = make_base(family, tmp_path / "base", **changes)
    backbone = Backbone.from_pretrained(str(base))
    expected = backbone.generate("story", max_new_tokens=10)
    with backbone.engine(**SMALL) as engine:
        assert engine.submit("story", max_new_tokens=10).result(10).text == expected
        with pytest.raises(RequestTooLongError, match="the model has 16"):
            engine.submit("story", max_new_tokens=17)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_frequencies_that_stay_leave_all_positions(tmp_path, family):
    """Yarn too has a first length, but its frequencies are the same beyond it."""
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    own = {"full_attention": yarn, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    base = make_base(family, tmp_path / "base", rope_parameters=own if family == "gemma3" else yarn)
    assert compatibility.most_positions(AutoModelForCausalLM.from_pretrained(base)) == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_tokens": 8}, "cache_tokens=8: expected a whole number of at least 16"),
        ({"page_tokens": 2}, "page_tokens=2: expected a whole number of at least 4"),
        ({"batch_tokens": 0}, "batch_tokens=0: expected a whole number of at least 1"),
        ({"max_running": "many"}, "max_running='many': expected a whole number"),
    ],
)
def test_settings_that_are_too_small(bases, settings, message):
    with pytest.raises(UsageError, match=message):
        Backbone.from_pretrained(str(bases("llama"))).engine(**settings)


def test_a_cache_beyond_all_memory(bases):
    with pytest.raises(EngineUnsupportedError, match=r"cache_tokens=1000000000000.*[Mm]emory"):
        Backbone.from_pretrained(str(bases("llama"))).engine(cache_tokens=10**12)


def test_layers_that_mix_tokens_take_no_adapters(bases, kinds):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(kinds("small"), "a")
    backbone._inference.rows_first = False  # what loading finds on such a model
    with backbone.engine(**SMALL) as engine:
        with pytest.raises(EngineUnsupportedError, match="don't keep the tokens of a step apart"):
            engine.submit("story", "a")
        assert engine.submit("story", max_new_tokens=2).result(10).tokens


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(bases, kinds):
    backbone = Backbone.from_pretrained(str(bases("llama")), device="cuda", dtype="float32")
    names = [None, *(backbone.load(kinds(name)).name for name in ("small", "output"))]
    sampled = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 8}
    with backbone.engine(**SMALL) as engine:
        for name in names:
            torch.manual_seed(3)
            expected = backbone.generate("story", name, **sampled)
            assert engine.submit("story", name, seed=3, **sampled).result(30).text == expected
        requests = [engine.submit("story", name, max_new_tokens=12) for name in names * 3]
        assert [request.result(30).text for request in requests] == [
            backbone.generate("story", name, max_new_tokens=12) for name in names * 3
        ]
