"""Mixed rows in one go, each adapter read where it is kept: in C on a CPU, in Triton on a GPU.

Both are made on the machine that uses them, and done without where that can't be.
"""
