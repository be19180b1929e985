import gc
from pathlib import Path

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.kernel.mixed_rows import kernel
from lorary.adapters.layer import products
from tiny import make_adapter, make_base

KINDS = {
    "small": {"r": 2},
    "other": {"r": 4},
    "large": {"r": 16, "target_modules": "all-linear"},
    "larger": {"r": 32},
    "dora": {"use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "output": {"target_modules": ["lm_head", "q_proj", "v_proj"]},
    "whole": {"modules_to_save": ["o_proj"], "target_modules": ["q_proj", "up_proj"]},
    "biased": {"lora_bias": True},
}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def with_c():
    """Products are made in C where they can be."""
    if kernel() is None:
        pytest.skip("no C code for mixed rows here: it takes Linux, gcc, and a processor with AVX2")


@pytest.fixture
def without_c(monkeypatch):
    """Products are made by PyTorch alone."""
    monkeypatch.setattr(products, "kernel_for", lambda arena: None)


@pytest.fixture(params=["in C", "by PyTorch"])
def way(request):
    """Both ways in which products are made."""
    request.getfixturevalue("with_c" if request.param == "in C" else "without_c")


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """A function that gives the folder of a tiny base of a family, made once a session."""
    made: dict[str, Path] = {}

    def base(family: str) -> Path:
        if family not in made:
            made[family] = make_base(family, tmp_path_factory.mktemp("bases") / family)
        return made[family]

    return base


@pytest.fixture(scope="session")
def kinds(bases, tmp_path_factory):
    """A function that gives the folder of a text-generation adapter of one of ``KINDS`` for the tiny Llama."""
    folder = tmp_path_factory.mktemp("kinds")

    def kind(name: str) -> Path:
        seed = list(KINDS).index(name) + 1
        if not (folder / name).exists():
            make_adapter(bases("llama"), folder / name, task="text-generation", seed=seed, **KINDS[name])
        return folder / name

    return kind


@pytest.fixture
def default_dtypes(monkeypatch):
    """The dtypes that have been made the process's default in the test."""
    seen, put = set(), torch.set_default_dtype

    def note(dtype):
        seen.add(dtype)
        put(dtype)

    monkeypatch.setattr(torch, "set_default_dtype", note)
    return seen


@pytest.fixture
def backbone(bases, kinds):
    """A tiny Llama with the adapters one and two."""
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(kinds("small"), "one")
    backbone.load(kinds("other"), "two")
    return backbone


@pytest.fixture(scope="session")
def frozen_imports(kinds):
    """transformers collects garbage whenever a loop ends, and would look through all that is imported each time."""
    kinds("small")  # everything heavy is imported by now
    gc.freeze()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service whose adapter, `writer`, writes characters, and so anything that it has to."""
    from characters import make_character_base
    from http_service import serving_writer

    place = tmp_path_factory.mktemp("served")
    base = make_character_base(place / "base", positions=512)
    return serving_writer(base, place, cache_tokens=1024, batch_tokens=16, page_tokens=4, max_running=8)


@pytest.fixture(scope="module")
def caller(service):
    """Sends requests to it."""
    from http_service import running

    with running(service) as caller:
        yield caller
