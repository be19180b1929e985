"""From files to checked examples."""

from lorary.training.data.examples import Example, Examples, Note
from lorary.training.data.load import load_data, load_rows
from lorary.training.data.splits import split_rows

__all__ = ["Example", "Examples", "Note", "load_data", "load_rows", "split_rows"]
