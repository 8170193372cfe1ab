"""PVIT's FineEval: questions, ranking page, tallies."""
