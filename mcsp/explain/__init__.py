"""What a classifier's score rests on."""
