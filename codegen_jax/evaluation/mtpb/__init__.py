"""MTPB, the paper's benchmark of several turns: its cases, samples, checkers, report and perplexity."""
