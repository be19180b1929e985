"""Mixed rows on a CPU, in C: compiled on the machine that uses it, and done without where there is no compiler."""
