"""Distils a big self-supervised speech model into a small streaming recogniser with lattice-free MMI."""
