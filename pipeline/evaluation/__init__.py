"""What a model's texts are worth, and what a frozen dataset's energies still answer."""
