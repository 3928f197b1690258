"""From raw shards to the batch of a step."""
