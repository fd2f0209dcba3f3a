"""Where a text ends, and documents as texts that do."""
