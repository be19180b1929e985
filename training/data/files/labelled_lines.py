"""Lines that begin with their labels, as fastText's files and TREC's have them.

fastText (https://fasttext.cc/docs/en/supervised-tutorial.html): ``__label__a __label__b the text``. TREC's questions
(Li and Roth 2002): ``DESC:manner How ...``, a coarse label and one that is finer, behind a colon.
"""

from __future__ import annotations

import re
from typing import Any

from lorary.training.data.files.contents import Manner, Rows, decode
from lorary.training.recipe.raw import shown

_MARK = "__label__"
_FASTTEXT = re.compile(rf"(?:{_MARK}\S*\s*)+")
_BEHIND = re.compile(rf"(?:^|\s+){_MARK}(\S+)")
"""A label among a text's words, where fastText takes it for one too."""
_TREC = re.compile(r"(([^\W\d]+):[^\W\d]\w*)\s+(\S.*)")


def read_lines(content: bytes, problems: list[str], manner: Manner) -> Rows:
    """A row a line: fastText's with ``label``, a list where a line has several, or TREC's with ``coarse_label`` and
    ``fine_label``, and ``text``. The first line tells which."""
    lines = [
        (number, line.strip())
        # Not splitlines(): U+2028 and its kind are letters of a text.
        for number, line in enumerate(decode(content, problems, manner.encoding).split("\n"), start=1)
        if line.strip()
    ]
    if not lines:
        return
    number, first = lines[0]
    if not first.startswith(_MARK) and not _TREC.fullmatch(first):
        expected = f"expected labels before the text, {_MARK}name as fastText has them or DESC:manner as TREC"
        tabs = "with tabs between a label and its text, name the file .tsv and its columns with data.header"
        problems.append(f"row {number}: {expected}, found {shown(first)}" + (f"; {tabs}" if "\t" in first else ""))
    elif first.startswith(_MARK):
        for number, line in lines:
            yield number, _of_fasttext(line)
    else:
        for number, line in lines:
            if found := _TREC.fullmatch(line):
                fine, coarse, text = found.groups()
                yield number, {"text": text, "coarse_label": coarse, "fine_label": fine}
            else:
                problems.append(
                    f"row {number}: expected a label such as DESC:manner before the text, found {shown(line)}"
                )


def _of_fasttext(line: str) -> dict[str, Any]:
    """A line's text and its label: None where there is none, a list where there are several."""
    found = _FASTTEXT.match(line)
    text = line[found.end() :] if found else line
    words = [word.removeprefix(_MARK) for word in found[0].split()] if found else []
    labels = list(dict.fromkeys(words + _BEHIND.findall(text)))
    return {
        "text": _BEHIND.sub("", text).lstrip(),
        "label": labels if len(labels) > 1 else labels[0] if labels else None,
    }
