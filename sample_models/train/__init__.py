"""Seeded scripts that make the data files and train the sample models."""
