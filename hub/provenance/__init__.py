"""How an adapter came to be, and what of that must not leave the machine."""
