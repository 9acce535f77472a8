"""Images and identities of a set that do not belong, found by embeddings; and the set without them."""
