"""Benchmark: how many cycles and how much time an SCF saves when it starts from the DEQH guess."""
