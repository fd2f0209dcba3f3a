"""Datasets and students on the Hugging Face Hub."""
