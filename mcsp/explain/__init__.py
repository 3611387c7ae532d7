"""Attribution of a classifier's score to channels and frequency bands."""
