from pathlib import Path

import pytest
import torch

from tiny import make_base


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """A function that gives the folder of a tiny base of a family, made once a session."""
    made: dict[str, Path] = {}

    def base(family: str) -> Path:
        if family not in made:
            made[family] = make_base(family, tmp_path_factory.mktemp("bases") / family)
        return made[family]

    return base
