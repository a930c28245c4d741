"""SeqIO tasks and mixtures; a module here registers one family of them."""
