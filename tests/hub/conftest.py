import pytest

from checkpoints import make_checkpoint


@pytest.fixture
def add(registry, tmp_path):
    """Add a checkpoint of its own for each seed."""

    def add(seed=0, name="finance-tone", manifest=True, config=None, **options):
        folder = make_checkpoint(tmp_path / f"checkpoints/{seed}", seed=seed, manifest=manifest, **(config or {}))
        return registry.add(folder, name=name, **options)

    return add
