"""Text formats of genotypes."""
