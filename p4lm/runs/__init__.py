"""What several jobs share: model directories, fitting, reward terms."""
