"""Training without the training code: a graph becomes torch arithmetic, and a student learns from its teacher."""
