"""Vocabulary-sized operations, each beside its plain-torch definition."""
