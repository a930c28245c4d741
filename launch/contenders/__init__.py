"""Programs that launch/bench.py compares, each run in a process of its own."""
