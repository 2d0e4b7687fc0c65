"""The text that the demo model learns from: English and Korean sentences, all of them made from tables."""
