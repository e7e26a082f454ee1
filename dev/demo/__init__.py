"""`make demo`: a training job loses a rank, then a pod, and ends with the loss of a run that lost nothing."""
