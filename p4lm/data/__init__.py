"""Tables, texts, tasks and batches; TensorFlow has its own process."""
