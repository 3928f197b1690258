"""Whether a run fits an absent TPU slice, and how fast it will be."""
