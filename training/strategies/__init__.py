"""Adapters that start from other adapters: what a parent gives, and the two ways of going on from it."""
