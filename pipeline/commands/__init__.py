"""Commands of `pipeline` that make a group of their own."""
