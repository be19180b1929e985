"""What it saves to keep token ids: rows of public data tokenized without a cache, into one, and out of it.

python benchmarks/tokens.py --data ../data [--times 20]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorary.hub.base_files import EMBEDDED_BASE
from lorary.training.data import Example, load_data
from lorary.training.recipe import Recipe
from lorary.training.tasks import make_task
from lorary.training.tasks.rows.token_cache import TokenCache

FOLDERS = {
    "sms_spam": "text-classification",
    "unfair_tos": "text-classification",
    "wnut17": "token-classification",
    "xquad_en": "question-answering",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folders of train.jsonl and test.jsonl")
    parser.add_argument("--times", type=int, default=20, help="how many times the first folder's rows, as a larger set")
    options = parser.parse_args()
    print("| rows | tokens | made, nothing kept | made and kept | found | times faster | on disk, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for folder, task in FOLDERS.items():
        measure(options.data / folder, task, 1)
    first, task = next(iter(FOLDERS.items()))
    measure(options.data / first, task, options.times)


def measure(folder: Path, name: str, times: int) -> None:
    from transformers import AutoTokenizer

    from lorary.hub.base_files import resolve_base

    flags = {"data.train": str(folder / "train.jsonl"), "data.test": str(folder / "test.jsonl")}
    recipe = Recipe.from_flags({"name": "x", "domain": "any", "task": name, "base": EMBEDDED_BASE, **flags})
    tokenizer = AutoTokenizer.from_pretrained(resolve_base(recipe.base, weights=False).path)
    data = load_data(recipe)
    task = make_task(recipe, data.labels, data.problem_type)
    task.begin(data.train)
    rows = [*data.train, *data.validation, *data.test]
    examples = [numbered(row, number) for number in range(times) for row in rows]

    def encode(cache: TokenCache | None) -> Any:
        return task.encode(examples, tokenizer, recipe.training.max_length, lambda line: None, cache)

    with tempfile.TemporaryDirectory() as place:
        cache = TokenCache(Path(place))
        plain, without = timed(lambda: encode(None))
        _, first = timed(lambda: encode(cache))
        found, second = timed(lambda: encode(cache))
        size = sum(path.stat().st_size for path in Path(place).rglob("*.arrow"))
    assert found == plain
    tokens = sum(len(feature["input_ids"]) for feature in plain.features)
    print(
        f"| {len(examples):,} of {folder.name} | {tokens:,} | {without:.2f} | {first:.2f} | {second:.2f} "
        f"| {without / second:.1f} | {size / 1e6:.1f} |",
        flush=True,
    )


def numbered(row: Example, number: int) -> Example:
    """The row, as another one for each number."""
    return Example({**row.values, "text": f"{row.values['text']} {number}"}, row.place) if number else row


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return call(), time.process_time() - start


if __name__ == "__main__":
    main()
