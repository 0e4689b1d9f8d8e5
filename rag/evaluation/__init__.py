"""Measures retrieval: questions with judgements in, figures out."""
