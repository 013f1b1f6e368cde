"""A Transformer language model: its units, the text it learns, the network, and what it says of sentences."""
