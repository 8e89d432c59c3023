"""What is odd about a dataset: leaks, duplicates, doubtful labels, images that show nothing."""
