"""Documents, the vocabulary, and what text looks like by counting."""
