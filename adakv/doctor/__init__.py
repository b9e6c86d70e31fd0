"""`adakv doctor`: what of this machine stands in the way of an export, a run or a phone; one module a kind of check."""
