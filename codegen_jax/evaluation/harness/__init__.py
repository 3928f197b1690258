"""lm-evaluation-harness in this process: the model adapter, task loading and evaluation."""
