"""The four rows of PVIT, table 1, at small scale."""
