"""What hidden states have in common: similarity of teachers and students, block by block."""
