"""MTPB, the paper's multi-turn benchmark: cases, samples, checkers, report and perplexity."""
