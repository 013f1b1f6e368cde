"""A Transformer language model: its units, its training text, the network, and scores of sentences."""
