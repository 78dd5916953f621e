"""Scores of completions: lexicon, classifier, verifier, learned run, mixtures, annotators."""
