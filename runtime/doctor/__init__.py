"""Whether a machine is fit for a run: small checks, each with a verdict, words and the exact fix."""
