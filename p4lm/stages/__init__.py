"""Running a graph of jobs: stages, the scheduler and its display."""
