"""Predictions in the shapes of ``transformers.pipeline``, each row prepared and read the way its adapter was trained.

A file per task; ``table`` says which class reads which, ``rows`` runs a batch of mixed tasks.
"""
