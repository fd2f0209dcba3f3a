"""What a student is measured by that it does not learn from, and when its training stops because of it."""
