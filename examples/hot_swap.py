"""One backbone, three adapters from the starter catalogue: a mixed batch, a swap, a call that keeps its version.

    python examples/hot_swap.py

Run it from the root of the repository, where `registry.db` is; the base comes with the `demo` extra.
"""

from lorary.adapters import Backbone
from lorary.hub import Registry

TEXTS = {
    "finance-tone": "The lender warned that bad loans will wipe out this year's profit",
    "email-spam": "Congratulations, you won 1000 dollars! Click here to claim your prize",
    "biomedical-diseases": "Mutations in this gene cause cystic fibrosis .",
}


def main() -> None:
    """Load, predict, swap."""
    registry = Registry("registry.db")
    backbone = Backbone.from_pretrained("sentence-transformers/all-MiniLM-L6-v2", registry=registry)
    for name in TEXTS:
        loaded = backbone.load(f"{name}@prod")
        print(f"{loaded.reference} ({loaded.task}) in {loaded.seconds * 1000:.0f} ms", *loaded.notes, sep="; ")

    # One batch, one pass of the body, each row with its own adapter and head.
    for text, answer in zip(TEXTS.values(), backbone.predict(list(TEXTS.values()), list(TEXTS)), strict=True):
        print(f"{text!r}: {answer}")

    # A call keeps the version that it began with; the next one sees the new version.
    text = TEXTS["finance-tone"]
    with backbone.using("finance-tone") as model:
        backbone.swap("finance-tone", "finance-tone@1")
        inputs = backbone.tokenizer(text, return_tensors="pt")
        print("still the old version:", model(**inputs).logits.softmax(-1).tolist())
    print("the new one:", backbone.predict(text, "finance-tone", top_k=None))

    stats = backbone.stats()
    print(f"{stats.slots_used} of {stats.slots} slots, {stats.slot_bytes:,} bytes each")


if __name__ == "__main__":
    main()
