"""What all commands share: the terminal, flags, interrupts, Ray, pages."""
