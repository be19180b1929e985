"""The HTTP service beside the library in the process, and beside PEFT with one request at a time, in one run.

    python benchmarks/service.py [--shape 10M] [--adapters 16] [--callers 32] [--repetitions 5]

The callers are a process of their own. Texts: the requests of engine.py, through the engine directly and over HTTP,
whole and streamed. Rows: short texts for classifiers on the embedded encoder, each caller asking for one after the
other, beside ``predict`` with all rows in one call (the bound). PEFT: what a service around it does that changes the
adapter for each request, behind a lock, here without any HTTP.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from callers import ask_all
from engine import SETTINGS, Load, make_load, through
from models import make_adapters, make_base
from timing import Timing, compare, environment, table

ROWS = 256
TEXT = "Orders at the shipyard doubled and the board raised its dividend"


@contextmanager
def served(backbone: Any, folders: Sequence[Path]) -> Iterator[tuple[str, int]]:
    """The address of a service of these adapters around this backbone."""
    import uvicorn

    from lorary.adapters.server import Service, ServiceSettings, create_app, listen

    service = Service(backbone, [str(folder) for folder in folders], ServiceSettings(engine=SETTINGS))
    with listen("127.0.0.1", 0) as taken:
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            yield taken.getsockname()[:2]
        finally:
            server.should_exit = True
            thread.join()


def texts(shape: str, adapters: int, callers: int, repetitions: int, pool: ProcessPoolExecutor) -> None:
    """Requests a second where texts are generated."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from lorary.adapters import Backbone

    load = make_load(64)
    with tempfile.TemporaryDirectory() as name:
        base = make_base(Path(name) / "base", shape)
        backbone = Backbone.from_pretrained(str(base), slots=adapters)
        folders = make_adapters(base, Path(name), adapters)
        names = [backbone.load(folder).name for folder in folders]
        bodies = [
            {"model": names[place % adapters], "prompt": prompt, "max_tokens": length, "min_tokens": length}
            for place, (prompt, length) in enumerate(zip(load.prompts, load.lengths, strict=True))
        ]
        plain = AutoModelForCausalLM.from_pretrained(base).eval()
        reference = PeftModel.from_pretrained(plain, folders[0], adapter_name=names[0]).eval()
        for folder in folders[1:]:
            reference.load_adapter(folder, adapter_name=folder.name)
        with backbone.engine(**SETTINGS) as engine, served(backbone, folders) as address:
            timings = compare(
                {
                    "engine, in the process": lambda: through(engine, load, names),
                    "over HTTP": lambda: pool.submit(ask_all, address, "/v1/completions", bodies, callers).result(),
                    "over HTTP, streamed": lambda: pool.submit(
                        ask_all, address, "/v1/completions", [body | {"stream": True} for body in bodies], callers
                    ).result(),
                    "PEFT, one request at a time": lambda: one_at_a_time(reference, backbone.tokenizer, load, names),
                },
                repetitions=repetitions,
            )
    print(f"\n{shape} Llama shape, {adapters} adapters of rank 16, {callers} callers, {len(bodies)} texts\n")
    show(timings, len(bodies), "texts/s")


def one_at_a_time(model: Any, tokenizer: Any, load: Load, names: list[str]) -> None:
    """Each request alone, with its adapter made the active one."""
    for place, (prompt, length) in enumerate(zip(load.prompts, load.lengths, strict=True)):
        model.set_adapter(names[place % len(names)])
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            model.generate(input_ids=ids, max_new_tokens=length, min_new_tokens=length, do_sample=False)


def rows(adapters: int, callers: int, repetitions: int, pool: ProcessPoolExecutor) -> None:
    """Rows a second where texts are classified."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from lorary.adapters import Backbone
    from lorary.hub.base_files import resolve_base

    encoder = resolve_base("sentence-transformers/all-MiniLM-L6-v2").path
    backbone = Backbone.from_pretrained(encoder, slots=adapters)

    def classifier() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3)

    with tempfile.TemporaryDirectory() as name:
        folders: list[Path] = []
        for number in range(adapters):
            torch.manual_seed(number)
            config = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"], init_lora_weights=False)
            folder = Path(name) / f"classes-{number}"
            get_peft_model(classifier(), config).save_pretrained(folder)
            folders.append(folder)
        names = [backbone.load(folder).name for folder in folders]
        reference = PeftModel.from_pretrained(classifier(), folders[0], adapter_name=names[0]).eval()
        for folder in folders[1:]:
            reference.load_adapter(folder, adapter_name=folder.name)
        chosen = [names[place % adapters] for place in range(ROWS)]
        bodies = [{"model": model, "inputs": TEXT} for model in chosen]

        def alone() -> None:
            for model in chosen:
                reference.set_adapter(model)
                with torch.no_grad():
                    reference(**backbone.tokenizer(TEXT, return_tensors="pt"))

        with served(backbone, folders) as address:
            timings = compare(
                {
                    "predict, all rows in one call": lambda: backbone.predict([TEXT] * ROWS, chosen),
                    "over HTTP": lambda: pool.submit(ask_all, address, "/v1/predict", bodies, callers).result(),
                    "PEFT, one row at a time": alone,
                },
                repetitions=repetitions,
            )
    print(f"\nMiniLM, {adapters} adapters of rank 8, {callers} callers, {ROWS} rows, one a request\n")
    show(timings, ROWS, "rows/s")


def show(timings: dict[str, Timing], count: int, unit: str) -> None:
    first = next(iter(timings))
    print(table([
        {"way": name, unit: f"{count / timing.median:.3g}", f"time over {first} (min to max)": timing.ratio}
        for name, timing in timings.items()
    ]))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="10M")
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(environment())
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows(options.adapters, options.callers, options.repetitions, pool)
        texts(options.shape, options.adapters, options.callers, options.repetitions, pool)


if __name__ == "__main__":
    main()
