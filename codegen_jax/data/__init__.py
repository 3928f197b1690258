"""The data pipeline, from raw shards to training batches."""
