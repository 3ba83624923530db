"""Packing: archives to shards."""
