"""Measures of answers that need no judge: likelihood, similarity, shape and verifiable instructions."""
