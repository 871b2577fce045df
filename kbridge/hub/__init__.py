"""Floor 3: one hub a kernel: who is attached, and what is owed to whom."""
