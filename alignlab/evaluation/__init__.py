"""Benchmarks: tasks that ask a policy something and give one number per item."""
