"""The Hugging Face Hub: its client, and what lies there as a store of files or as a model by name."""
