"""The side that submits: the command line, readers of inputs, writers of outcomes, the embedded Redis."""
