"""What an `nce` compass is fitted to, noise that it learns to tell from text, and how well it does."""
