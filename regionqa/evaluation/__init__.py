"""Evaluation of models on labelled data: tasks, metrics, comparison and reports."""
