"""Adapters that are there, measured on other rows than they were trained with."""
