"""Who writes texts: templates over tables, or a trained checkpoint."""
