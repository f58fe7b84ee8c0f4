"""The search for settings that train a better model on these images, within a budget."""
