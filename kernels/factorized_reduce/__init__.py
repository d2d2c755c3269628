"""Several factorized reductions, i.e. strided identities, of one input at once."""
