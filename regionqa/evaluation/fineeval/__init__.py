"""PVIT's FineEval: its questions, the page on which people rank answers, counted rankings."""
