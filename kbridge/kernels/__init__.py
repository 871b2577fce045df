"""Floor 4: the life and death of kernels; jupyter_client ends here."""
