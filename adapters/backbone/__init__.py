"""The loader's facade: one frozen base model and the adapters on it, by what is done with them."""

from lorary.adapters.backbone.backbone import Backbone

__all__ = ["Backbone"]
