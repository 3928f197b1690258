"""lm-evaluation-harness in this process: a model behind its interface, its tasks, and a run of them."""
