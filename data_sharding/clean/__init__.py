"""Reading and cleaning of one recording, in a process of its own."""
