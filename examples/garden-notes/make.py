"""Write the corpus of this folder: notes on invented plants, from facts and sentences written for this project.

python examples/garden-notes/make.py
"""

from __future__ import annotations

import random
from pathlib import Path

MONTHS = ("March", "April", "May", "September", "October")
PLACES = ("full sun", "half shade", "deep shade", "a warm wall", "the edge of a pond")
SOILS = ("sandy soil", "heavy clay", "loam", "stony ground", "damp peat")
COLOURS = ("white", "yellow", "violet", "pale blue", "red", "pink")
PESTS = ("snails", "aphids", "mildew", "voles", "rust", "nothing at all")
USES = ("tea against a cough", "a sharp salad", "dye for wool", "a syrup for children", "bedding for hens", "mead")
STEMS = (
    "mar",
    "tol",
    "sil",
    "bren",
    "hask",
    "wim",
    "ost",
    "cal",
    "dor",
    "fen",
    "gil",
    "lum",
    "nar",
    "pel",
    "rud",
    "tas",
)
ENDINGS = ("wort", "bane", "leaf", "bloom", "cress", "thistle")

SENTENCES = (
    "{Name} is sown in {month} and flowers {colour}.",
    "The {colour} flowers of {name} open in the second year.",
    "It wants {place} and {soil}.",
    "In {soil} {name} grows to a height of {height} centimetres.",
    "Keep {gap} centimetres between two plants of {name}.",
    "Of all pests {pest} trouble {name} the most.",
    "Against {pest} the old gardeners strewed ash around it.",
    "The leaves are dried in {harvest} and kept for {use}.",
    "From {name} people here make {use}.",
    "Who sows {name} before {month} waits in vain.",
    "Do not plant {name} beside {other}; both like {soil}, and neither yields.",
    "After {age} years the roots of {name} are divided.",
)


def plants(random_: random.Random) -> list[dict[str, object]]:
    """The invented plants with their facts, which all notes keep to."""
    names = [stem + ending for stem in STEMS for ending in ENDINGS]
    return [
        {
            "name": name,
            "month": random_.choice(MONTHS),
            "place": random_.choice(PLACES),
            "soil": random_.choice(SOILS),
            "colour": random_.choice(COLOURS),
            "pest": random_.choice(PESTS[:-1]),
            "use": random_.choice(USES),
            "harvest": random_.choice(("June", "July", "August")),
            "height": 10 * random_.randrange(2, 16),
            "gap": 5 * random_.randrange(2, 9),
            "age": random_.randrange(2, 7),
        }
        for name in random_.sample(names, 24)
    ]


def note(plant: dict[str, object], other: str, random_: random.Random) -> str:
    """Three to six sentences on a plant, in any order."""
    chosen = random_.sample(SENTENCES, random_.randrange(3, 7))
    facts = {**plant, "Name": str(plant["name"]).capitalize(), "other": other}
    return "\n".join(sentence.format(**facts) for sentence in chosen)


def main() -> None:
    """Write train.txt and test.txt; a blank line stands between two notes."""
    random_ = random.Random(20251)
    known = plants(random_)
    notes = []
    for _ in range(420):
        plant, other = random_.sample(known, 2)
        notes.append(note(plant, str(other["name"]), random_))
    folder = Path(__file__).parent
    for file, part in (("train.txt", notes[:360]), ("test.txt", notes[360:])):
        (folder / file).write_text("\n\n".join(part) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
