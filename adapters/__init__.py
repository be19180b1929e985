"""One backbone, many adapters: the loader.

``Backbone`` loads a base model once and any number of LoRA adapters on it, each row of a batch with its own.
"""

from lorary.adapters.backbone import Backbone
from lorary.adapters.proving.proof import GoldenReport
from lorary.adapters.values import LoadedAdapter, MergedModel, Stats

__all__ = ["Backbone", "GoldenReport", "LoadedAdapter", "MergedModel", "Stats"]
