"""Smaller models: what may be taken out together, what to take, and how to make up for it."""
