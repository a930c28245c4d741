"""Accelerators: what chips can do, and what compiled programs ask of them."""
