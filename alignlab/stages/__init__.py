"""Stages: frozen hyperparameters plus one verb each."""
