"""The mathematics of p4lm: pure functions, arrays in and arrays out.

What must agree between a sampler and a learner, or between two algorithms
(log-probabilities, masks, KL), exists here once. Nothing here knows Flax, gin
or files. Sums run in float32 at least: bfloat16 and float16 inputs are raised
first, float64 stays float64.
"""
