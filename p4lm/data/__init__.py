"""Tables, texts, tasks and batches; TensorFlow stays in a process of its own."""
