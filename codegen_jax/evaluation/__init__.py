"""Evaluate models: benchmarks, sandboxed execution, pass@k and perplexity."""
