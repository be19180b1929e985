"""What is printed when nobody is left to read it."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    ("name", "place", "end"),
    [
        ("stdout", "terminal", "borne"),
        ("stderr", "terminal", "borne"),
        ("stderr", "pipe", "borne"),
        ("stdout", "pipe", "BrokenPipeError"),  # as in `lorary list | head -1`
    ],
)
def test_a_lost_reader_is_borne_but_for_one_of_results(name, place, end, buffered, commands):
    ended = commands.run("unheard:talk", name, place, buffered)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"heard {end}")
