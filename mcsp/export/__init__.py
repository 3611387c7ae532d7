"""From the weights of a run to a folder for others: weights, card, programs, Hub."""
