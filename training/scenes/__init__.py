"""Scenes: coloured shapes on a plain background, what is said and asked about them, and their pictures."""
