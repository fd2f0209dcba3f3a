"""What is read of the Hugging Face Hub beside datasets: models, by their names."""
