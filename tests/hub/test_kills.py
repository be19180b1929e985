"""A short form of ``tests/helpers/kill_registry.py``."""

import os

import pytest

import kill_registry


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_commands_leave_the_registry_whole(tmp_path):
    commands = [name for name in kill_registry.COMMANDS if name not in kill_registry.SLOW]
    assert kill_registry.run(tmp_path, kills=12, seed=1, commands=commands).total() == 12
