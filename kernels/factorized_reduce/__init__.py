"""Several strided identities of one input at once."""
