"""The model card: the ``README.md`` that goes with an adapter to the Hub, made from what the catalogue knows of it."""

from lorary.hub.card.metadata import card_tags
from lorary.hub.card.page import make_card

__all__ = ["card_tags", "make_card"]
