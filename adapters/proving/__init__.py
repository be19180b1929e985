"""Does an adapter take effect, and does it answer as it did when it was trained?"""
