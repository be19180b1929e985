"""Texts in and out: prompts, tokenizers, chat templates, generation."""
