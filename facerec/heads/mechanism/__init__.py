"""The mechanism under every head: sums over blocks of classes, sharding, sampling, terms."""
