"""Benchmarks and forgetting: every metric as a paired difference against SFT; reward models."""
