"""Torch only: models import no data, graph or decoding library, so they export and serve alone."""
