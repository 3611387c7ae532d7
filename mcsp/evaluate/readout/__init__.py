"""The read-out: linear classifiers on Gram matrices, in folds that share them."""
