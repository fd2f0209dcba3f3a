"""Texts as people read them: of any length, up to their end."""
