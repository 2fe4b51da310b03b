"""Random valid models, and what every pass must keep of them. One seed: ``python -m tests.fuzz SEED``."""
