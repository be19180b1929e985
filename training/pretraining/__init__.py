"""A small base model and its tokenizer from scratch, for a new language or a corpus of one's own."""

from lorary.training.pretraining.recipe import PretrainRecipe

__all__ = ["PretrainRecipe"]
