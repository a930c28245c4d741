"""The jobs of `p4lm JOB`, one readable file each."""
